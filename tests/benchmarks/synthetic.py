"""Clients of samples that are noise: as many clients as a benchmark asks for, each as large as every other."""

import os

import numpy as np

FACTORY = "synthetic:arrays"
SHAPE = "SYNTHETIC_SHAPE"
"""Environment variable: clients, training samples and test samples of each, height, width, channels; spaces between."""


def overrides(
    clients: int, train: int = 20, test: int = 4, height: int = 16, width: int = 16, channels: int = 1
) -> list[str]:
    """Options of a run on such clients. For this process alone: a rank asks for itself."""
    os.environ[SHAPE] = f"{clients} {train} {test} {height} {width} {channels}"
    least = f"data.min_samples={min(train, 10)}"
    return ["data.source=python", f"data.factory={FACTORY}", "data.partition=natural", "data.num_clients=0", least]


def arrays() -> dict[str, np.ndarray]:
    """What `data.source=python` takes; the same on every rank."""
    clients, train, test, *shape = map(int, os.environ[SHAPE].split())
    rng, each = np.random.default_rng(0), train + test
    return {
        "x": rng.integers(0, 256, (clients * each, *shape), np.uint8),
        "y": rng.integers(0, 10, clients * each),
        "client": np.repeat(np.arange(clients), each),
        "split": np.tile(np.arange(each) >= train, clients),
    }
