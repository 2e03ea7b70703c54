"""Which client owns which sample: `iid`, `dirichlet` (label skew) and `domain` (feature skew).

A kind only chooses weights [num_clients, num_classes]. Everything else is one path, on tables of how
many samples of each class a client gets: training samples are dealt by the weights, clients below
`min_samples` are topped up, test samples follow the training samples, and only then are actual samples
drawn to fill the tables. So no sample is lost or owned twice, whatever the weights.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedbsd_dist.data.sources import Samples
from fedbsd_dist.data.tables import Ints, cover, deal, top_up
from fedbsd_dist.errors import UserError
from fedbsd_dist.randomness import generator

ALPHA_MIN, ALPHA_MAX = 1e-6, 1e6  # at these ends a class is on one client, or spread evenly


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """The samples of each client, as indices into `Samples`."""

    train: tuple[Ints, ...]
    """Training samples of each client, ascending."""
    test: tuple[Ints, ...]
    """Test samples of each client, ascending."""

    @property
    def num_clients(self) -> int:
        return len(self.train)

    @property
    def train_sizes(self) -> tuple[int, ...]:
        return tuple(len(indices) for indices in self.train)

    @property
    def test_sizes(self) -> tuple[int, ...]:
        return tuple(len(indices) for indices in self.test)

    @property
    def sha256(self) -> str:
        """Fingerprint of who owns what, from little-endian bytes so that every platform agrees."""
        digest = hashlib.sha256()
        for indices in (*self.train, *self.test):
            digest.update(len(indices).to_bytes(8, "little"))
            digest.update(indices.astype("<i8").tobytes())
        return digest.hexdigest()


def make_partition(
    samples: Samples, *, kind: str, num_clients: int, alpha: float, min_samples: int, seed: int
) -> Partition:
    """Give every sample one owner, and every client `min_samples` training samples and one test sample.

    `alpha` matters to `dirichlet` only. The result depends on the arguments alone.
    """
    if kind not in PARTITIONS:
        raise UserError(f"data.partition={kind!r} is unknown: set it to one of {', '.join(PARTITIONS)}.")
    if kind == "dirichlet" and not ALPHA_MIN <= alpha <= ALPHA_MAX:
        raise UserError(
            f"data.alpha={alpha} is out of range: set it between {ALPHA_MIN:g} (each class on one client) "
            f"and {ALPHA_MAX:g} (each class spread evenly)."
        )
    weigh, by_domain = PARTITIONS[kind]
    pool_of = samples.domain if by_domain else np.zeros_like(samples.domain)  # [n]
    num_pools = len(samples.domains) if by_domain else 1
    _refuse_infeasible(samples, pool_of, num_pools, kind, num_clients, min_samples)

    train, test = [np.empty(0, np.int64)] * num_clients, [np.empty(0, np.int64)] * num_clients
    for pool in range(num_pools):
        clients = slice(pool, num_clients, num_pools)  # client k draws from pool k mod num_pools
        rng = generator(seed, "partition", kind, pool)
        weights = weigh(len(train[clients]), len(samples.classes), alpha, rng)
        members = np.flatnonzero(pool_of == pool)
        train[clients], test[clients] = _share_out(samples, members, weights, min_samples, rng)
    return Partition(train=tuple(train), test=tuple(test))


def _refuse_infeasible(
    samples: Samples, pool_of: Ints, num_pools: int, kind: str, num_clients: int, min_samples: int
) -> None:
    num_train = np.bincount(pool_of[~samples.is_test], minlength=num_pools)
    num_test = np.bincount(pool_of[samples.is_test], minlength=num_pools)
    pools = np.arange(num_pools)

    def most_clients(min_samples: int) -> int:
        room = np.minimum(num_train // min_samples, num_test)  # clients that each pool can serve
        return int((pools + num_pools * room).min())  # client p + num_pools * room[p] is one too many

    if min_samples >= 1 and num_pools <= num_clients <= most_clients(min_samples):
        return
    remedies = []
    if num_pools <= num_clients <= most_clients(1):
        clients_of = -(-(num_clients - pools) // num_pools)
        remedies.append(f"data.min_samples to 1..{(num_train // clients_of).min()}")
    for smaller in (max(min_samples, 1), 1):
        if num_pools <= most_clients(smaller):
            within = f"{num_pools}..{most_clients(smaller)}"
            remedies.append(f"data.num_clients to {within} with data.min_samples={smaller}")
            break
    if num_pools > 1:
        remedies.append("data.partition to a kind that mixes the domains")
    raise UserError(
        f"data.num_clients={num_clients} with data.min_samples={min_samples} and data.partition={kind} is "
        f"impossible: each client needs that many (at least 1) training samples and 1 test sample"
        f"{' of its domain' if num_pools > 1 else ''}, and {samples.name} has {_sum(num_train)} training "
        f"and {_sum(num_test)} test samples. Set {', or '.join(remedies)}."
    )


def _sum(numbers: Ints) -> str:
    return " + ".join(str(number) for number in numbers)


def _share_out(
    samples: Samples, members: Ints, weights: Ints, min_samples: int, rng: np.random.Generator
) -> tuple[list[Ints], list[Ints]]:
    """Training and test indices of each client, from the samples `members` [n] and weights by class."""
    num_classes = weights.shape[1]
    train_members, test_members = members[~samples.is_test[members]], members[samples.is_test[members]]
    train = deal(np.bincount(samples.y[train_members], minlength=num_classes), weights)
    top_up(train, min_samples)
    test = deal(np.bincount(samples.y[test_members], minlength=num_classes), train)
    cover(test, train)
    return _fill(train, samples.y, train_members, rng), _fill(test, samples.y, test_members, rng)


def _fill(table: Ints, y: Ints, members: Ints, rng: np.random.Generator) -> list[Ints]:
    """Draw actual samples, without replacement, for a table [num_clients, num_classes] of counts."""
    drawn: list[list[Ints]] = [[] for _ in table]
    for c, counts in enumerate(table.T):
        shuffled = rng.permutation(members[y[members] == c])
        for client, indices in enumerate(np.split(shuffled, np.cumsum(counts)[:-1])):
            drawn[client].append(indices)
    return [np.sort(np.concatenate(indices)) for indices in drawn]


def _equal_weights(num_clients: int, num_classes: int, alpha: float, rng: np.random.Generator) -> Ints:
    return np.ones((num_clients, num_classes), np.int64)


def _dirichlet_weights(num_clients: int, num_classes: int, alpha: float, rng: np.random.Generator) -> Ints:
    """The clients' shares of each class are one draw from Dirichlet(alpha) (Yurochkin et al., ICML 2019).

    NumPy draws small alpha by stick breaking, so that the shares cannot all underflow to 0. Rounded to
    multiples of 2**-32 they are dealt exactly, and a platform's last float digit hardly ever matters.
    """
    shares = rng.dirichlet(np.full(num_clients, alpha), size=num_classes)  # [num_classes, num_clients]
    weights: Ints = np.rint(shares.T * 2**32).astype(np.int64)
    return weights


class Kind(NamedTuple):
    """One way to decide which client owns which sample."""

    weights: Callable[[int, int, float, np.random.Generator], Ints]
    """(num_clients, num_classes, alpha, rng) -> [num_clients, num_classes]"""
    by_domain: bool
    """Whether client k draws from domain k mod num_domains alone, or all clients from all samples."""


PARTITIONS = {
    "iid": Kind(_equal_weights, by_domain=False),
    "dirichlet": Kind(_dirichlet_weights, by_domain=False),
    "domain": Kind(_equal_weights, by_domain=True),
}
