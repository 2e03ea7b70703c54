"""Finished runs cut down to what a report reads, small enough to be kept beside the code."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedbsd_dist import dialect
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import reading
from fedbsd_dist.record.directory import CLIENTS, CONFIG, LEDGER, METRICS, PARTITION, SUMMARY, read_lines
from fedbsd_dist.record.files import write_atomically
from fedbsd_dist.record.reading import Run

COLUMNS = ("round", "stage", "client", "num_train", "num_test", "accuracy")
SPENT = {"bytes": ("federated_up", "federated_down"), "seconds": ("training", "communication")}
DIGITS = 6
"""Of what is kept of accuracies and seconds, behind the point."""


def keep(runs: Sequence[Run], folder: Path) -> None:
    """A directory in `folder` for each run, under the name of its own. Raises UserError where one is there already, and
    where two runs have one name.
    """
    names = [run.path.resolve().name for run in runs]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--keep={folder}: several runs are called {', '.join(doubles)}. Keep them in several folders.")
    if folder.resolve() in [run.path.resolve() for run in runs]:
        raise UserError(f"--keep={folder}: is one of the runs. Choose a new folder.")
    if there := [name for name in names if (folder / name).exists()]:
        raise UserError(f"--keep={folder}: {there[0]} is there already. Choose a new folder.")
    for run, name in zip(runs, names, strict=True):
        try:
            (folder / name).mkdir(parents=True)
            for file, content in cut(run.path).items():
                write_atomically(folder / name / file, content.encode())
        except OSError as error:
            raise UserError(f"--keep={folder}: cannot write there ({error.strerror or error}).") from None


def cut(path: Path) -> dict[str, str]:
    """Name -> text: the configuration without what no number depends on, such as where it ran; the summary as it is; of
    every evaluation accuracies, and bytes and seconds since the one before; the digest of who owns which sample; every
    client in the last evaluation; and what was sent in the first round.
    """
    lines = _evaluations(read_lines(path / METRICS))
    digest = {"sha256": json.loads(reading.content(path / PARTITION))["sha256"]}
    sent = [line for line in read_lines(path / LEDGER) if line["purpose"] == "aggregate"]
    first = [
        {key: line[key] for key in ("round", "purpose", "elements_by_group")}
        for line in sent
        if line["round"] == sent[0]["round"]
    ]
    return {
        CONFIG: dialect.write(_settings(dialect.parse(reading.content(path / CONFIG).decode()))),
        SUMMARY: reading.content(path / SUMMARY).decode(),
        METRICS: _jsonl(lines),
        PARTITION: json.dumps(digest) + "\n",
        CLIENTS: _last(reading.content(path / CLIENTS).decode()),
        LEDGER: _jsonl(first),
    }


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in of.items() if key not in reading.APART.get(name, ())}
        if isinstance(of, dict)
        else of
        for name, of in config.items()
    }


def _last(table: str) -> str:
    """Of a table of clients, the last evaluation, and of that who it was, and how accurate."""
    rows = [*csv.DictReader(io.StringIO(table))]
    kept = [",".join(COLUMNS)]
    for row in rows:
        if row["round"] == rows[-1]["round"]:
            kept.append(",".join([*(row[name] for name in COLUMNS[:-1]), str(_short(float(row["accuracy"])))]))
    return "\n".join(kept) + "\n"


def _evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each round with one, and for the last."""
    found, spent = [], Counter[tuple[str, str]]()
    for line in lines:
        spent.update({(of, key): line[of][key] for of, keys in SPENT.items() for key in keys})
        if line["accuracy"] or line is lines[-1]:
            kept = {key: line[key] for key in ("round", "loss", "accuracy", "validation") if line.get(key)}
            kept |= {of: {key: spent[of, key] for key in keys} for of, keys in SPENT.items()}
            found.append({"accuracy": {}, **{key: _short(value) for key, value in kept.items()}})
            spent.clear()
    return found


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(of) for key, of in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


def _jsonl(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
