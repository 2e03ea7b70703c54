"""Stages of evaluation, and what is said of a stage over all clients.

received     the newest shared state with the client's own private state
trained      after local learning: during a run the cohort's just-trained models; at the end every
             client receives the last shared state and learns once more, and nothing is uploaded
head_tuned   the newest shared state, then `evaluate.head_epochs` of the head alone: the same step for
             every method
new_client   the same of held-out clients that never trained, with the private state that all began with
"""

import math

import numpy as np

CORRECT, COUNT, LOSS = range(3)
"""Columns of a stage's table, float64 [all clients, 3]: a client that was not tested has count 0."""

Stages = dict[str, np.ndarray]


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
