"""Finished runs read back: what their directories say, grouped by all settings but the seed."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbsd_dist import dialect
from fedbsd_dist.errors import UserError
from fedbsd_dist.record.directory import CLIENTS, CONFIG, LEDGER, METRICS, SUMMARY, is_finished, read_lines

FLOAT = 4
"""Bytes of a number that crosses."""
APART = ("run", "sweep", "checkpoint", "server")
"""Sections that say where and how a run was made, not what it is."""
STAGES = ("received", "trained", "head_tuned", "finetuned", "new_client")


@dataclass(frozen=True)
class Run:
    """One finished run."""

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        found: dict[str, Any] = json.loads((self.path / SUMMARY).read_text())
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`section.field` -> value of what the run's numbers depend on, the seed too."""
        values = dialect.parse((self.path / CONFIG).read_text())
        return {
            f"{section}.{field}" if isinstance(fields, dict) else section: value
            for section, fields in values.items()
            if section not in APART
            for field, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
        }

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a line a round."""
        return read_lines(self.path / METRICS)

    @cached_property
    def crossing(self) -> dict[str, int]:
        """Group -> numbers of it that a participating client sends in a round, and receives, by the ledger's first
        aggregate; what is no group's is left out.
        """
        entries = (entry for entry in read_lines(self.path / LEDGER) if entry["purpose"] == "aggregate")
        elements: dict[str, int] = next(entries)["elements_by_group"]
        return {group: count for group, count in elements.items() if group != "scalars"}

    def clients(self, stage: str) -> list[float]:
        """Accuracy of every client at a stage of the last evaluation, by client."""
        rows = csv.DictReader((self.path / CLIENTS).read_text().splitlines())
        last = str(self.summary["rounds"])
        return [float(row["accuracy"]) for row in rows if row["round"] == last and row["stage"] == stage]

    def curve(self, axis: str) -> tuple[list[float], list[float]]:
        """(`rounds`, `bytes` or `seconds` so far, accuracy `received`, mean over clients) of every evaluated round."""
        so_far, xs, ys = 0.0, [], []
        for line in self.lines:
            so_far += {
                "rounds": 1.0,
                "bytes": line["bytes"]["federated_up"] + line["bytes"]["federated_down"],
                "seconds": line["seconds"]["training"] + line["seconds"]["communication"],
            }[axis]
            if "received" in line["accuracy"]:
                xs.append(so_far)
                ys.append(line["accuracy"]["received"]["mean"])
        return xs, ys

    def check(self) -> None:
        """Raises UserError where a file of the run is missing or cannot be read."""
        try:
            self.crossing, self.lines[-1]["accuracy"]["received"]["mean"], self.clients("received")
            self.settings["seed"], self.summary["method"], self.summary["parameters"]["backbone"]
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
            raise UserError(
                f"{self.path}: this run's files cannot be read ({type(error).__name__}: {error}). Leave it out, or run "
                "it again."
            ) from None


@dataclass(frozen=True)
class Group:
    """Runs of the same settings with different seeds."""

    label: str
    method: str
    runs: Mapping[int, Run]
    """By seed, ascending."""

    @property
    def first(self) -> Run:
        """Stands for all where they do not differ."""
        return next(iter(self.runs.values()))

    def accuracy(self, stage: str, key: str = "mean") -> dict[int, float]:
        """Seed -> accuracy at the end of the run, of those that have the stage; `key` as in summary.json."""
        return {
            seed: run.summary["accuracy"][stage][key]
            for seed, run in self.runs.items()
            if stage in run.summary["accuracy"]
        }


def find(paths: Sequence[Path]) -> list[Path]:
    """The finished runs among `paths` and right below them. Raises UserError where one has none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder. Give the directory of a run, or a folder of several.")
        here = [path] if is_finished(path) else sorted(below for below in path.iterdir() if is_finished(below))
        if not here:
            raise UserError(f"{path}: holds no finished run (one with a {SUMMARY}).")
        found += [run for run in here if run.resolve() not in {known.resolve() for known in found}]
    return found


def load(paths: Sequence[Path]) -> list[Group]:
    """These runs in groups, each labelled by its method and what tells it from the others.

    Raises UserError for a run that cannot be read, and for one that is there twice.
    """
    by_settings: dict[str, dict[int, Run]] = {}
    for run in map(Run, paths):
        run.check()
        key = json.dumps({name: value for name, value in run.settings.items() if name != "seed"}, sort_keys=True)
        seeds = by_settings.setdefault(key, {})
        seed = run.settings["seed"]
        if seed in seeds:
            raise UserError(f"{run.path} and {seeds[seed].path}: the same run twice. Leave one out.")
        seeds[seed] = run
    gathered = [dict(sorted(seeds.items())) for seeds in by_settings.values()]
    labels = list(_labels([next(iter(seeds.values())) for seeds in gathered]))
    return [
        Group(label, next(iter(seeds.values())).summary["method"], seeds)
        for label, seeds in zip(labels, gathered, strict=True)
    ]


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which these runs differ, the seed and what only some methods have left out."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "seed")
    shared = [name for name in names if all(name in run.settings for run in runs)]
    return [name for name in shared if any(run.settings[name] != runs[0].settings[name] for run in runs)]


def _labels(runs: Sequence[Run]) -> Iterator[str]:
    common = [name for name in differing(runs) if not name.startswith("method.")]
    for run in runs:
        alike = [other for other in runs if other.summary["method"] == run.summary["method"]]
        own = [name for name in differing(alike) if name.startswith("method.")]
        yield " ".join(
            [run.summary["method"], *(f"{name.rpartition('.')[2]}={run.settings[name]}" for name in [*own, *common])]
        )
