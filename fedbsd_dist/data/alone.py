"""The samples of one client by itself, in the form that a run has which it was no part of."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import split_alone
from fedbsd_dist.data.samples import Ints, Samples
from fedbsd_dist.errors import UserError, did_you_mean

TEST_FRACTION = 0.25
"""Of the samples, where they are not split already."""


def load_alone(root: str, cache: str, shape: tuple[int, int, int], classes: Sequence[str]) -> Samples:
    """What `root` holds: [train|test/]CLASS/IMAGE, as a folder or an archive of it, or an array file NAME.npz.

    Images come in the run's `shape` (channels, height, width), and labels are numbers of its `classes`, found by
    name. Raises UserError for a class that the run does not know, and for what the sources refuse.
    """
    if not os.path.exists(os.path.expanduser(root)):
        raise UserError(f"--data={root}: there is no such folder or file.")
    channels, height, width = shape
    data = Data(
        source="npz" if Path(root).suffix == ".npz" else "folder",
        root=root,
        image_size=height if height == width else 0,
        channels=1 if channels == 1 else 3,
        test_fraction=TEST_FRACTION,  # or train/ alone would be refused
        cache=cache,
    )
    sources.prepare(data)
    samples = sources.load(data)
    if samples.x.shape[1:] != (height, width, channels):
        raise UserError(
            f"--data={root}: the run's images are {width}x{height} (width x height), and these "
            f"{samples.x.shape[2]}x{samples.x.shape[1]}. Resize them."
        )
    held = [samples.classes[label] for label in np.unique(samples.y)]
    unknown = [name for name in held if name not in classes]
    if unknown:
        known = f"{', '.join(classes[:20])}{f' and {len(classes) - 20} more' if len(classes) > 20 else ''}"
        raise UserError(
            f"--data={root}: the run knows no class {unknown[0]!r}.{did_you_mean(unknown[0], classes)} Its classes are "
            f"{known}. Rename it or leave it out (an array file can name its labels in `classes`)."
        )
    number = np.array([classes.index(name) if name in classes else -1 for name in samples.classes], np.int64)
    return dataclasses.replace(samples, y=number[samples.y], classes=tuple(classes))


def split(samples: Samples, test_fraction: float | None, seed: int) -> tuple[Ints, Ints]:
    """Indices of training and test samples: as they are split already, or else, or for a `test_fraction`, drawn.

    Raises UserError where none would be left for either.
    """
    own = samples.is_test.any() and test_fraction is None
    fraction = 0.0 if own else test_fraction or TEST_FRACTION
    train, test = split_alone(samples, Data(test_fraction=fraction), seed)
    if not len(train) or not len(test):
        raise UserError(
            f"{samples.name}: has {len(train)} samples to learn from and {len(test)} to test on, and needs one for "
            f"each. Add samples{', or have some drawn with --test-fraction=0.25' if own else ''}."
        )
    return train, test
