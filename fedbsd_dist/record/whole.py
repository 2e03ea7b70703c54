"""Is the record of a run whole? A run that goes on adds to it, and what it says at the end is of all of it."""

import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from fedbsd_dist.record.directory import CLIENTS, LEDGER, METRICS, read_lines

LAST = "head_tuned"
"""A stage that is tested at the end of a run and at no other time."""


def missing(run: Path, round: int) -> str:
    """What the record lacks of the rounds until this one; empty where it has all.

    Raises UserError for lines that are none.
    """
    metrics = {line["round"]: line for line in read_lines(run / METRICS)}
    absent = [number for number in range(1, round + 1) if number not in metrics]
    if absent:
        return f"{METRICS} does not know round {absent[0]}"
    payload = defaultdict[int, int](int)
    for entry in read_lines(run / LEDGER):
        payload[entry["round"]] += entry["payload_bytes"]
    accuracies = _accuracies(run / CLIENTS)
    for number in range(1, round + 1):
        line = metrics[number]
        if payload[number] < line["bytes"]["payload"]:
            return f"{LEDGER} lacks collectives of round {number}"
        for stage, accuracy in line["accuracy"].items():
            found = accuracies[number, stage]
            if not found or not math.isclose(sum(found) / len(found), accuracy["mean"], abs_tol=1e-9):
                return f"{CLIENTS} lacks clients of round {number}, {stage}"
    return ""


def was_last(run: Path, round: int) -> bool:
    """Whether all clients were tested after this round as at the end of a run."""
    return any(line["round"] == round and LAST in line["accuracy"] for line in read_lines(run / METRICS))


def _accuracies(path: Path) -> dict[tuple[int, str], list[float]]:
    """(round, stage) -> of each client, by rows that are whole."""
    found = defaultdict[tuple[int, str], list[float]](list)
    rows: Any = csv.DictReader(path.read_text(errors="replace").splitlines()) if path.exists() else []
    for row in rows:
        try:
            found[int(row["round"]), row["stage"]].append(float(row["accuracy"]))
        except (KeyError, TypeError, ValueError):
            continue
    return found
