"""One thread in the tests' own process, as a rank has: more would sum in another order, and wait for each other.

And the order in which the workers of `pytest --numprocesses` take up the files: those that take longest first.
"""

import pytest
import torch

torch.set_num_threads(1)

LONGEST = ("test_slurm", "test_watch", "test_worlds", "test_survival", "test_faults", "test_parity", "test_methods")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorting is stable: else they stay in their order."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
