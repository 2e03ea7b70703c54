"""How unlike each other the clients of a partition are, in a few figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.samples import Ints, Samples

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Heterogeneity:
    """Over the clients that train; all but the sizes are means over clients, each counting alike."""

    classes: float
    """Classes of which a client has a training sample."""
    effective_classes: float
    """exp of the entropy of a client's class distribution: of so many equally frequent classes it would be alike."""
    from_federation: float
    """Total variation between a client's class distribution and that of all training samples."""
    train_from_test: float
    """Total variation between the class distributions of a client's training and test samples."""
    smallest: int
    """Training samples of the smallest client."""
    median: float
    largest: int
    variation: float
    """Standard deviation of the clients' training samples over their mean."""


def measure(samples: Samples, partition: Partition) -> Heterogeneity:
    """The figures of a partition of `samples`."""
    train = partition.class_table(samples)[: partition.num_clients]
    test = np.stack(
        [np.bincount(samples.y[own], minlength=len(samples.classes)) for own in partition.test[: partition.num_clients]]
    )
    sizes, of_client, of_all = train.sum(axis=1), _shares(train), _shares(train.sum(axis=0))
    return Heterogeneity(
        classes=float((train > 0).sum(axis=1).mean()),
        effective_classes=float(np.exp(_entropy(of_client)).mean()),
        from_federation=float(_distance(of_client, of_all).mean()),
        train_from_test=float(_distance(of_client, _shares(test)).mean()),
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        largest=int(sizes.max()),
        variation=float(sizes.std() / sizes.mean()),
    )


def _shares(counts: Ints) -> Floats:
    shares: Floats = counts / counts.sum(axis=-1, keepdims=True)
    return shares


def _entropy(shares: Floats) -> Any:
    """In nats; a class without samples adds nothing."""
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1)


def _distance(shares: Floats, others: Floats) -> Any:
    """Total variation: the share of samples that would have to be of another class."""
    return np.abs(shares - others).sum(axis=-1) / 2
