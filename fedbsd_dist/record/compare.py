"""Placeholder."""

from collections.abc import Sequence
from pathlib import Path


def comparison(run_dirs: Sequence[Path], baseline: str = "fedbsd") -> str:
    """Placeholder."""
    return ""
