"""Which client owns which sample.

A kind only chooses weights [num_clients, num_classes]. Everything else is one path, on tables of how
many samples of each class a client gets: samples are dealt by the weights, clients below `min_samples`
are topped up, test samples follow the training samples or are split off them, and only then are actual
samples drawn to fill the tables. So no sample is lost or owned twice, whatever the weights. The source's
own clients (`natural`) need no dealing. Validation samples are taken off a client's training samples last
of all, so that nothing else is drawn otherwise for them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data import feasible, tables
from fedbsd_dist.data.kinds import KINDS, check_alphas, skew_sizes
from fedbsd_dist.data.samples import Ints, Samples
from fedbsd_dist.errors import UserError
from fedbsd_dist.randomness import generator


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """The samples of each client, as indices into `Samples`."""

    train: tuple[Ints, ...]
    """Training samples of each client, ascending."""
    test: tuple[Ints, ...]
    """Test samples of each client, ascending."""
    val: tuple[Ints, ...] = ()
    """Validation samples of each client, ascending, none of a new one's; empty where none are held out at all."""
    num_new: int = 0
    """The last so many clients are new ones: they never train."""
    left_out: int = 0
    """Samples that no client owns."""

    @property
    def num_clients(self) -> int:
        """Clients that train."""
        return len(self.train) - self.num_new

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """Of every client, the new ones last."""
        return tuple(len(indices) for indices in self.train)

    @property
    def test_sizes(self) -> tuple[int, ...]:
        """Of every client, the new ones last."""
        return tuple(len(indices) for indices in self.test)

    @property
    def val_sizes(self) -> tuple[int, ...]:
        """Of every client, the new ones last."""
        return tuple(len(self.val_of(client)) for client in range(len(self.train)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """All samples of every client, the new ones last."""
        return tuple(map(sum, zip(self.train_sizes, self.val_sizes, self.test_sizes, strict=True)))

    def val_of(self, client: int) -> Ints:
        """Its validation samples, if there are any."""
        return self.val[client] if self.val else np.empty(0, np.int64)

    @property
    def learned_from(self) -> Ints:
        """The training samples of all clients that train."""
        return np.concatenate(self.train[: self.num_clients])

    @property
    def sha256(self) -> str:
        """Fingerprint of who owns what, from little-endian bytes so that every platform agrees."""
        digest = hashlib.sha256()
        for indices in (*self.train, *self.test, *self.val):
            digest.update(len(indices).to_bytes(8, "little"))
            digest.update(indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def class_table(self, samples: Samples) -> Ints:
        """Training samples [all clients, num_classes]."""
        return np.stack([np.bincount(samples.y[owned], minlength=len(samples.classes)) for owned in self.train])


def make_partition(samples: Samples, data: Data, seed: int) -> Partition:
    """Give every sample one owner, and every client `min_samples` training samples and one test sample.

    With `val_fraction`, a client that trains has a validation sample too.

    The result depends on the arguments alone. Raises UserError for what is impossible, with what is not.
    """
    check_alphas(data)
    if not data.test_fraction and (samples.is_test.all() or not samples.is_test.any()):
        raise UserError(
            f"{samples.name}: has no {'test' if samples.is_test.sum() == 0 else 'training'} samples of its own. "
            "Set data.test_fraction=0.25, say, to split each client's samples."
        )
    make = _natural if data.partition == "natural" else _dealt
    train, test = make(samples, data, seed)
    left_out = len(samples.y) - sum(map(len, (*train, *test)))
    val = _hold_out(samples, train, data, seed) if data.val_fraction else []
    partition = Partition(
        train=tuple(train), test=tuple(test), val=tuple(val), num_new=data.num_new_clients, left_out=left_out
    )
    _refuse_absent_classes(partition, samples)
    return partition


def _hold_out(samples: Samples, train: list[Ints], data: Data, seed: int) -> list[Ints]:
    """The validation samples of each client, taken off `train`; new clients, tested only at the end, keep theirs."""
    val = [np.empty(0, np.int64)] * len(train)
    for client in range(len(train) - data.num_new_clients):
        rng = generator(seed, "validation", client)
        train[client], val[client] = _split(samples, train[client], data.val_fraction, rng)
    return val


def _refuse_absent_classes(partition: Partition, samples: Samples) -> None:
    """No model could learn a class that nobody has."""
    held = partition.class_table(samples).sum(axis=0).tolist()
    absent = [name for name, count in zip(samples.classes, held, strict=True) if not count]
    if absent:
        raise UserError(
            f"{samples.name}: no client has a training sample of class {', '.join(absent[:5])}"
            f"{f' and {len(absent) - 5} more' if len(absent) > 5 else ''}. "
            "Set data.classes to the classes to keep (labels without names begin at 0), or take more clients."
        )


def _dealt(samples: Samples, data: Data, seed: int) -> tuple[list[Ints], list[Ints]]:
    """Training and test samples of each client, all samples dealt out."""
    kind = KINDS[data.partition]
    pool_of = samples.domain if kind.by_domain else np.zeros_like(samples.domain)  # [n]
    num_pools = len(samples.domains) if kind.by_domain else 1
    feasible.check(samples, pool_of, num_pools, data)

    num_clients = data.num_clients + data.num_new_clients
    train, test = [np.empty(0, np.int64)] * num_clients, [np.empty(0, np.int64)] * num_clients
    for pool in range(num_pools):
        clients = slice(pool, num_clients, num_pools)  # client k draws from pool k mod num_pools
        rng = generator(seed, "partition", data.partition, pool)
        members = np.flatnonzero(pool_of == pool)
        train[clients], test[clients] = _share_out(samples, members, len(train[clients]), data, rng)
    return train, test


def _share_out(
    samples: Samples, members: Ints, num_clients: int, data: Data, rng: np.random.Generator
) -> tuple[list[Ints], list[Ints]]:
    """Training and test samples of each client of one pool, the samples `members`."""
    kind, num_classes = KINDS[data.partition], len(samples.classes)
    to_test = samples.is_test[members] & (data.test_fraction == 0)
    dealt, apart = members[~to_test], members[to_test]
    counts = np.bincount(samples.y[dealt], minlength=num_classes)
    weights = kind.weights(counts, num_clients, data, rng)
    if data.size_alpha:
        weights = skew_sizes(weights, data, rng)
    table = tables.deal(counts, weights)
    needed = feasible.needed(data.min_samples, data)
    if kind.keeps_classes:
        feasible.check_smallest(int(table.sum(axis=1).min()), needed, data)
    tables.top_up(table, needed)
    if data.test_fraction:
        test_table = tables.split(table, data.test_fraction)
        both = _fill(np.concatenate([table - test_table, test_table]), samples.y, dealt, rng)
        return both[:num_clients], both[num_clients:]
    test_table = tables.deal(np.bincount(samples.y[apart], minlength=num_classes), table)
    tables.cover(test_table, table)
    return _fill(table, samples.y, dealt, rng), _fill(test_table, samples.y, apart, rng)


def _fill(table: Ints, y: Ints, members: Ints, rng: np.random.Generator) -> list[Ints]:
    """Draw actual samples, without replacement, for a table [rows, num_classes] of counts."""
    by_class = np.split(members[np.argsort(y[members], kind="stable")], np.cumsum(table.sum(axis=0))[:-1])
    shuffled = np.concatenate([rng.permutation(of_class) for of_class in by_class])
    rows = np.arange(len(table))
    row_of = np.concatenate([np.repeat(rows, counts) for counts in table.T])
    in_order = shuffled[np.lexsort((shuffled, row_of))]
    return np.split(in_order, np.cumsum(table.sum(axis=1))[:-1])


def _natural(samples: Samples, data: Data, seed: int) -> tuple[list[Ints], list[Ints]]:
    """The samples of the source's own clients: of all, or of so many drawn at random among those with enough."""
    if not samples.clients:
        raise UserError(
            f"data.partition=natural: {samples.name} names no clients of its own. Choose another partition."
        )
    num_owners = len(samples.clients)
    sizes = np.bincount(samples.client, minlength=num_owners)
    num_test = np.bincount(samples.client[samples.is_test], minlength=num_owners)
    needed = feasible.needed(data.min_samples, data)
    enough = sizes >= needed if data.test_fraction else (sizes - num_test >= needed) & (num_test > 0)
    feasible.check_owners(samples.clients, enough, data)
    total = (data.num_clients + data.num_new_clients) if data.num_clients else num_owners
    chosen = generator(seed, "partition", "natural").permutation(np.flatnonzero(enough))[:total]
    training = total - data.num_new_clients
    owners = [*np.sort(chosen[:training]), *np.sort(chosen[training:])]
    by_owner = np.split(np.argsort(samples.client, kind="stable"), np.cumsum(sizes)[:-1])
    return _split_owned(samples, [by_owner[owner] for owner in owners], data, seed)


def split_alone(samples: Samples, data: Data, seed: int) -> tuple[Ints, Ints]:
    """Training and test samples of one client who owns all `samples`, split as those of the source's own clients."""
    train, test = _split_owned(samples, [np.arange(len(samples.y))], data, seed)
    return train[0], test[0]


def _split_owned(samples: Samples, owned: Sequence[Ints], data: Data, seed: int) -> tuple[list[Ints], list[Ints]]:
    """Training and test samples of each client that owns the samples `owned`."""
    if not data.test_fraction:
        return [own[~samples.is_test[own]] for own in owned], [own[samples.is_test[own]] for own in owned]
    train, test = [], []
    for client, own in enumerate(owned):
        both = _split(samples, own, data.test_fraction, generator(seed, "partition", "natural", client))
        train.append(both[0])
        test.append(both[1])
    return train, test


def _split(samples: Samples, own: Ints, fraction: float, rng: np.random.Generator) -> list[Ints]:
    """The samples `own` of one client in two parts, the second so large a fraction, class by class."""
    table = np.bincount(samples.y[own], minlength=len(samples.classes))[np.newaxis]
    part = tables.split(table, fraction)
    return _fill(np.concatenate([table - part, part]), samples.y, own, rng)
