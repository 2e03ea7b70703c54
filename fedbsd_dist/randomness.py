"""Randomness by name: every draw is seeded by what it is for, never by which rank makes it.

So the partition, the cohort, the batches and dropout are the same on any number of ranks, and
hardly any random state needs saving in a checkpoint.
"""

import hashlib

import numpy as np


def named_seed(seed: int, *name: str | int) -> int:
    """Seed in [0, 2**63) for the draw called `name`, for example (seed, "batches", round, client)."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *name: str | int) -> np.random.Generator:
    """NumPy generator for the draw called `name`; PCG64's stream is the same on every platform."""
    return np.random.Generator(np.random.PCG64(named_seed(seed, *name)))
