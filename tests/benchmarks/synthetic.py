"""Clients whose samples are noise: as many as a benchmark asks for, each as large as every other."""

import os
import tempfile

import numpy as np

SHAPE = "SYNTHETIC_SHAPE"
"""Environment variable: clients, training and test samples of each, height, width, channels; spaces between."""


def overrides(clients: int, train: int, test: int, height: int, width: int, channels: int) -> list[str]:
    """Options of a run on such clients, for the process that asks: every rank asks for itself."""
    os.environ[SHAPE] = f"{clients} {train} {test} {height} {width} {channels}"
    return [
        *("data.source=python", "data.factory=synthetic:arrays"),
        *("data.partition=natural", "data.num_clients=0", f"data.min_samples={train}"),
    ]


def arrays() -> dict[str, np.ndarray]:
    """What `data.source=python` takes; the same on every rank. The images are mapped from a file."""
    clients, train, test, *shape = map(int, os.environ[SHAPE].split())
    rng, each = np.random.default_rng(0), train + test
    with tempfile.TemporaryFile() as file:  # its pages outlive its name, and are no memory of the process's own
        x = np.memmap(file, np.uint8, "w+", shape=(clients * each, *shape))
    for start in range(0, len(x), 4096):
        x[start : start + 4096] = rng.integers(0, 256, x[start : start + 4096].shape, np.uint8)
    return {
        "x": x,
        "y": rng.integers(0, 10, len(x)),
        "client": np.repeat(np.arange(clients), each),
        "split": np.tile(np.arange(each) >= train, clients),
    }
