"""Stages of evaluation, and what is said of a stage over all clients.

received     the newest shared state with the client's own private state
trained      after local learning: during a run the cohort's just-trained models; at the end every
             client receives the last shared state and learns once more, and nothing is uploaded
head_tuned   the newest shared state, then `evaluate.head_epochs` of the head alone: the same step for
             every method
new_client   the same of held-out clients that never trained, with the private state that all began with

Where validation samples are held out, the stages VALIDATED are tested on them too. The best round is chosen by
`received` on them, and never by test samples; so is that of a method whose personal model comes of a test-time step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CORRECT, COUNT, LOSS = range(3)
"""Columns of a stage's table, float64 [all clients, 3]: a client that was not tested has count 0."""

VALIDATED = ("received", "trained")
VALIDATION = slice(3, 6)
"""Further columns of the stages VALIDATED, where validation samples are held out: the same of these."""

Stages = dict[str, np.ndarray]
Lines = Sequence[Mapping[str, Any]]
"""Of metrics.jsonl."""


def summarize(table: np.ndarray) -> dict[str, float]:
    """Accuracy over the clients tested, as fractions; `worst_10pct` is the mean of the worst tenth,
    rounded up to whole clients; `std` is that of the population of clients.
    """
    tested = table[table[:, COUNT] > 0]
    accuracy = np.sort(tested[:, CORRECT] / tested[:, COUNT])
    return {
        "mean": float(accuracy.mean()),
        "weighted_mean": float(tested[:, CORRECT].sum() / tested[:, COUNT].sum()),
        "std": float(accuracy.std()),
        "worst_10pct": float(accuracy[: math.ceil(len(accuracy) / 10)].mean()),
    }


def last_rounds(lines: Lines, rounds: int) -> dict[str, Any]:
    """The numbers of `received`, which always tests all clients that train, each its mean over the evaluations in the
    last `rounds` rounds; `evaluations` says how many there were.
    """
    first = lines[-1]["round"] - rounds + 1
    found = [line["accuracy"]["received"] for line in lines if line["round"] >= first and line["accuracy"]]
    means = {key: sum(of[key] for of in found) / len(found) for key in found[0]}
    return {"rounds": rounds, "evaluations": len(found), "received": means}


def best_by_validation(lines: Lines) -> dict[str, Any] | None:
    """The round, the first of equals, whose validation accuracy at `received` is highest in the mean over clients,
    with its test accuracy; None where there are no validation samples.
    """
    validated = [line for line in lines if line.get("validation")]
    if not validated:
        return None
    best = max(validated, key=lambda line: line["validation"]["received"]["mean"])
    return {
        "round": best["round"],
        "validation": best["validation"]["received"]["mean"],
        "stage": "received",
        "received": best["accuracy"]["received"],
    }
