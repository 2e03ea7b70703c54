"""Every sample has one owner, every client has enough, and what cannot be had is refused by its key."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fedbsd_dist.config import Data
from fedbsd_dist.data.digits import load_digits
from fedbsd_dist.data.kinds import KINDS
from fedbsd_dist.data.partition import Partition, make_partition
from fedbsd_dist.data.samples import Ints, Samples, make_samples
from fedbsd_dist.errors import UserError

NATURAL = "natural"


@pytest.fixture(scope="module")
def digits() -> Samples:
    return load_digits(Data())


def _random_samples(rng: np.random.Generator) -> Samples:
    """Unbalanced labels, domains and owners; every class has a training sample, but maybe none for testing."""
    n, num_classes, num_domains = int(rng.integers(20, 300)), int(rng.integers(1, 9)), int(rng.integers(1, 4))
    num_owners = int(rng.integers(1, 12))
    y = rng.choice(num_classes, n, p=rng.dirichlet(np.ones(num_classes)))
    is_test = rng.random(n) < rng.uniform(0.1, 0.6)
    y[:num_classes], is_test[:num_classes], is_test[-1] = np.arange(num_classes), False, True
    return make_samples(
        name="random",
        x=np.zeros((n, 1, 1, 1), np.uint8),
        y=y,
        classes=tuple(map(str, range(num_classes))),
        domain=rng.choice(num_domains, n, p=rng.dirichlet(np.full(num_domains, 3.0))),
        domains=tuple(map(str, range(num_domains))),
        client=rng.choice(num_owners, n, p=rng.dirichlet(np.ones(num_owners))),
        clients=tuple(f"w{owner}" for owner in range(num_owners)),
        is_test=is_test,
    )


def _test_size(size: int, fraction: float) -> int:
    return max(1, int(np.floor(size * fraction + 0.5)))


def _can_have(size: int, num_test: int, data: Data) -> bool:
    """Whether `size` samples, of them `num_test` of the source's test split, serve one client."""
    if data.test_fraction:
        return size - _test_size(size, data.test_fraction) >= data.min_samples
    return size - num_test >= data.min_samples and num_test >= 1


def _feasible(samples: Samples, data: Data) -> bool:
    """Worked out client by client, the pathological partition apart: its clients cannot be topped up."""
    total = data.num_clients + data.num_new_clients
    if data.partition == NATURAL:
        owners = range(len(samples.clients))
        sizes = [((samples.client == o).sum(), (samples.is_test & (samples.client == o)).sum()) for o in owners]
        able = sum(_can_have(int(size), int(num_test), data) for size, num_test in sizes)
        if data.num_clients == 0:
            return able == len(samples.clients) > data.num_new_clients
        return total <= able
    by_domain = KINDS[data.partition].by_domain
    pool = samples.domain if by_domain else np.zeros_like(samples.domain)
    num_pools = len(samples.domains) if by_domain else 1
    if data.num_clients < 1 or total < num_pools:
        return False
    clients = Counter(client % num_pools for client in range(total))
    for p in range(num_pools):
        if data.test_fraction:
            size = next(s for s in range(10_000) if _can_have(s, 0, data))
            if (pool == p).sum() < clients[p] * size:
                return False
        else:
            num_train, num_test = (pool[~samples.is_test] == p).sum(), (pool[samples.is_test] == p).sum()
            if num_train < clients[p] * data.min_samples or num_test < clients[p]:
                return False
    return True


def _label_table(samples: Samples, owned: tuple[Ints, ...]) -> Ints:
    return np.stack([np.bincount(samples.y[indices], minlength=len(samples.classes)) for indices in owned])


def _check_guarantees(samples: Samples, partition: Partition, data: Data) -> None:
    everything = np.concatenate([*partition.train, *partition.test])
    assert len(np.unique(everything)) == len(everything)  # no sample in two places
    assert len(everything) + partition.left_out == len(samples.y)
    assert all(i.dtype == np.int64 and (np.diff(i) > 0).all() for i in (*partition.train, *partition.test))
    assert min(partition.train_sizes) >= data.min_samples
    assert min(partition.test_sizes) >= 1
    assert len(partition.train) - partition.num_clients == partition.num_new == data.num_new_clients
    if data.partition != NATURAL:
        assert partition.left_out == 0
    if data.test_fraction == 0:
        assert not samples.is_test[np.concatenate(partition.train)].any()
        assert samples.is_test[np.concatenate(partition.test)].all()
        if data.partition != NATURAL:
            _check_test_follows_train(samples, partition, data)
    else:
        _check_split(samples, partition, data.test_fraction)
    for client, (train, test) in enumerate(zip(partition.train, partition.test, strict=True)):
        both = np.concatenate([train, test])
        if data.partition in KINDS and KINDS[data.partition].by_domain:
            assert set(samples.domain[both]) == {client % len(samples.domains)}
        if data.partition == NATURAL:
            owner = samples.client[both[0]]
            assert (samples.client[both] == owner).all()
            assert len(both) == (samples.client == owner).sum()  # all that the owner has


def _check_test_follows_train(samples: Samples, partition: Partition, data: Data) -> None:
    """A test sample of a class that the client does not train on: only if nobody of its pool does, or as the one
    sample of a client that could not be given another.
    """
    num_pools = len(samples.domains) if KINDS[data.partition].by_domain else 1
    table = _label_table(samples, partition.train)
    pool_trains_on = np.stack([table[pool::num_pools].any(axis=0) for pool in range(num_pools)])
    for client, (train, test) in enumerate(zip(partition.train, partition.test, strict=True)):
        untrained = np.setdiff1d(samples.y[test], samples.y[train])
        assert len(test) == 1 or not pool_trains_on[client % num_pools, untrained].any()


def _check_split(samples: Samples, partition: Partition, fraction: float) -> None:
    """Each class of a client is split alike: at most one sample off its share."""
    train, test = _label_table(samples, partition.train), _label_table(samples, partition.test)
    for a, t in zip(train, test, strict=True):
        size = (a + t).sum()
        assert t.sum() == _test_size(int(size), fraction)
        share = (a + t) * t.sum() / size
        assert (np.abs(t - share) <= 1).all()
        # a class is tested without being trained on only where every class with two samples already gives one
        if ((a == 0) & (t > 0)).any():
            assert (t[(a + t) >= 2] >= np.floor(share[(a + t) >= 2])).all()
            assert not ((a >= 2) & (t < share)).any()


def _random_request(rng: np.random.Generator, trial: int, samples: Samples) -> Data:
    kind = (*KINDS, NATURAL)[trial % (len(KINDS) + 1)]
    fraction = float(rng.choice([0.0, 0.0, 0.1, 0.25, 0.5, 0.9]))
    num_clients = int(rng.integers(1, rng.choice([5, 20, 80])))
    if kind == NATURAL:
        num_clients = int(rng.integers(0, 6))
    per_client = int(2 * (~samples.is_test).sum() // max(1, num_clients))
    return Data(
        partition=kind,
        num_clients=num_clients,
        num_new_clients=int(rng.choice([0, 0, 1, 3])),
        alpha=float(10 ** rng.uniform(-6, 6)),
        size_alpha=0.0 if kind in ("pathological", NATURAL) else float(rng.choice([0, 0, 10 ** rng.uniform(-6, 6)])),
        classes_per_client=int(rng.integers(1, len(samples.classes) + 1)),
        min_samples=int(rng.integers(1, max(2, per_client if kind != NATURAL else 8))),
        test_fraction=fraction,
    )


@pytest.mark.filterwarnings("error")
def test_guarantees_hold_or_the_request_is_refused() -> None:
    rng = np.random.default_rng(0)
    made: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for trial in range(1200):
        samples = _random_samples(rng)
        data = _random_request(rng, trial, samples)
        try:
            partition = make_partition(samples, data, trial)
        except UserError as refusal:
            refused[data.partition] += 1
            message = str(refusal)
            # classes that no client has, or classes and sizes that do not go together: asked for, and told
            told = "data.classes" in message or (data.partition == "pathological" and "data.min_samples" in message)
            assert told or not _feasible(samples, data), (data, message)
            assert "data.num_clients" in message or told
        else:
            assert _feasible(samples, data) or data.partition == "pathological"
            _check_guarantees(samples, partition, data)
            made[data.partition] += 1
    assert min(made[kind] for kind in (*KINDS, NATURAL)) > 30, made
    assert min(refused[kind] for kind in (*KINDS, NATURAL)) > 30, refused


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("num_clients", [1, 20, 782])
def test_digits_can_be_divided_at_every_alpha(digits: Samples, alpha: float, num_clients: int) -> None:
    data = Data(num_clients=num_clients, alpha=alpha)
    _check_guarantees(digits, make_partition(digits, data, 0), data)


@pytest.mark.parametrize(
    ("num_clients", "classes"),
    [(100, 2), (100, 5), (10, 1), (20, 10), (50, 3), (7, 3), (3, 4), (13, 9), (2, 5)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_pathological_clients_hold_so_many_classes_in_equal_sizes(num_clients: int, classes: int, seed: int) -> None:
    """Of 10 classes with 400 training and 100 test samples each, as CIFAR-10's are balanced."""
    y = np.tile(np.repeat(np.arange(10), 100), 5)
    samples = make_samples(
        name="balanced",
        x=np.zeros((len(y), 1, 1, 1), np.uint8),
        y=y,
        classes=tuple("abcdefghij"),
        is_test=np.arange(len(y)) >= 4000,
    )
    data = Data(partition="pathological", num_clients=num_clients, classes_per_client=classes)
    partition = make_partition(samples, data, seed)
    table, tested = _label_table(samples, partition.train), _label_table(samples, partition.test)
    assert ((table > 0).sum(axis=1) == classes).all()
    assert (tested[table == 0] == 0).all()  # the test set holds the same classes
    assert (tested[table > 0] > 0).all()
    owners = (table > 0).sum(axis=0)
    assert owners.sum() == num_clients * classes
    assert np.ptp(owners) <= 1  # as evenly as can be
    for held in table.T:
        assert np.ptp(held[held > 0]) <= 1
    if num_clients * classes % 10 == 0:
        assert np.ptp(table.sum(axis=1)) <= classes  # shards of one size
        if 400 % owners[0] == 0:
            assert np.ptp(table.sum(axis=1)) == 0
    assert make_partition(samples, data, seed + 1).sha256 != partition.sha256


def test_pathological_shards_of_uneven_classes_are_as_even_as_can_be() -> None:
    y = np.repeat(np.arange(4), (1000, 500, 250, 30))
    samples = make_samples(name="uneven", x=np.zeros((len(y), 1, 1, 1), np.uint8), y=y, classes=tuple("abcd"))
    data = Data(partition="pathological", num_clients=20, classes_per_client=2, test_fraction=0.2, min_samples=5)
    partition = make_partition(samples, data, 0)
    table = _label_table(samples, partition.train) + _label_table(samples, partition.test)
    # 40 shards: no way to place them gives a larger smallest shard among classes that have room for one more
    owners = (table > 0).sum(axis=0)
    assert owners.tolist() == [20, 13, 6, 1]


def test_who_holds_which_class_is_random_and_every_pair_of_classes_occurs() -> None:
    y = np.repeat(np.arange(10), 100)
    samples = make_samples(name="b", x=np.zeros((1000, 1, 1, 1), np.uint8), y=y, classes=tuple("abcdefghij"))
    data = Data(partition="pathological", num_clients=100, classes_per_client=2, test_fraction=0.2, min_samples=1)
    pairs: Counter[tuple[int, ...]] = Counter()
    for seed in range(20):
        table = _label_table(samples, make_partition(samples, data, seed).train)
        pairs.update(tuple(np.flatnonzero(row)) for row in table)
    # 2,000 draws over 45 pairs: 44.4 expected of each; five standard deviations are 33
    assert len(pairs) == 45
    assert min(pairs.values()) > 11
    assert max(pairs.values()) < 78


def test_natural_takes_all_owners_or_a_random_choice_of_those_with_enough() -> None:
    sizes = [40, 5, 30, 20, 50, 3, 60]
    client = np.repeat(np.arange(7), sizes)
    samples = make_samples(
        name="written",
        x=np.zeros((len(client), 1, 1, 1), np.uint8),
        y=np.arange(len(client)) % 2,
        classes=("a", "b"),
        client=client,
        clients=tuple("tuvwxyz"),
    )
    base: dict[str, Any] = {"partition": NATURAL, "test_fraction": 0.2, "min_samples": 10}
    everyone = make_partition(samples, Data(**base | {"min_samples": 1, "num_clients": 0}), 0)
    assert [a + b for a, b in zip(everyone.train_sizes, everyone.test_sizes, strict=True)] == sizes
    assert everyone.left_out == 0
    drawn = set()
    for seed in range(30):
        partition = make_partition(samples, Data(**base, num_clients=2, num_new_clients=1), seed)
        owners = [int(samples.client[train[0]]) for train in partition.train]
        assert owners[:2] == sorted(owners[:2])
        assert partition.left_out == sum(sizes) - sum(sizes[owner] for owner in owners)
        drawn |= set(owners)
    assert drawn == {0, 2, 3, 4, 6}
    with pytest.raises(UserError, match=r"all 7 clients, but 2 of them \(such as 'u'\).*1\.\.5"):
        make_partition(samples, Data(**base, num_clients=0), 0)
    with pytest.raises(UserError, match="5 of 7 clients"):
        make_partition(samples, Data(**base, num_clients=6), 0)


def test_new_clients_are_the_last_and_nothing_is_learned_from_them(digits: Samples) -> None:
    partition = make_partition(digits, Data(num_clients=10, num_new_clients=4), 0)
    assert (partition.num_clients, len(partition.train)) == (10, 14)
    assert set(partition.learned_from) == set(np.concatenate(partition.train[:10]))
    pixels = digits.x[np.concatenate(partition.train[:10])] / 255
    mean, std = digits.mean_and_std(partition.learned_from)
    np.testing.assert_allclose((mean[0], std[0]), (pixels.mean(), pixels.std()), rtol=1e-12)


def test_sizes_go_from_uneven_to_equal_with_size_alpha(digits: Samples) -> None:
    spread = []
    for size_alpha in (0.05, 0.5, 5.0, 1e6):
        data = Data(partition="iid", size_alpha=size_alpha, min_samples=1)
        sizes = np.array(make_partition(digits, data, 0).train_sizes)
        spread.append(sizes.std() / sizes.mean())
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 2
    assert spread[-1] < 0.01


def test_alpha_goes_from_one_client_a_class_to_an_even_spread(digits: Samples) -> None:
    total = _label_table(digits, (np.flatnonzero(~digits.is_test),))[0]
    largest_share = []
    for alpha in (1e-3, 0.1, 1.0, 1e6):
        table = _label_table(digits, make_partition(digits, Data(alpha=alpha, min_samples=1), 3).train)
        largest_share.append((table.max(axis=0) / total).mean())
    assert largest_share == sorted(largest_share, reverse=True)
    assert largest_share[0] > 0.95
    assert np.abs(table - total / 20).max() <= 2


@pytest.mark.parametrize("kind", ["iid", "domain"])
def test_iid_clients_are_alike(digits: Samples, kind: str) -> None:
    """Within a pool, sizes and class counts differ by at most one training sample, domains are mixed."""
    partition = make_partition(digits, Data(partition=kind, num_clients=14), 0)
    num_pools = 2 if kind == "domain" else 1
    for pool in range(num_pools):
        table = _label_table(digits, partition.train[pool::num_pools])
        assert np.ptp(table, axis=0).max() <= 1
        assert np.ptp(table.sum(axis=1)) <= 1
        assert np.ptp(_label_table(digits, partition.test[pool::num_pools]), axis=0).max() <= 1
    if kind == "iid":
        mnist = np.array([digits.domain[indices].mean() for indices in partition.train])
        assert (np.abs(mnist - 4000 / 7823) < 5 * 0.5 / np.sqrt(558)).all()  # five standard errors


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5, 5.0])
def test_train_and_test_classes_of_a_client_agree(digits: Samples, alpha: float) -> None:
    """Total variation (TV) between a client's class distributions in training and in test is bounded.

    Let a[c] be the client's training samples of class c and r[c] the test samples per training sample of c
    over all clients. Test counts t follow q[c] = r[c] a[c]. Dealing keeps |t[c] - q[c]| < 1 in each of the
    client's m classes. Covering a client moves at most one sample into and one out of any other, and leaves
    the covered one with a single sample: if k clients have a single one, |t - q| < m + 2k in sum. So with
    T = sum(t), TV(t / T, q / sum(q)) <= (m + 2k) / T. And q / sum(q) is a / sum(a) reweighted by factors
    between min(r) / max(r) and max(r) / min(r): TV between those is at most (max(r) / min(r) - 1) / 2.
    """
    partition = make_partition(digits, Data(alpha=alpha), 1)
    train, test = _label_table(digits, partition.train), _label_table(digits, partition.test)
    r = test.sum(axis=0) / train.sum(axis=0)
    covered = (test.sum(axis=1) == 1).sum()
    checked = 0
    for a, t in zip(train, test, strict=True):
        bound = ((a > 0).sum() + 2 * covered) / t.sum() + (r.max() / r.min() - 1) / 2
        assert np.abs(a / a.sum() - t / t.sum()).sum() / 2 <= bound
        checked += bound < 0.25
    assert checked >= 10  # for at least half of the clients the bound says something


def test_same_seed_same_partition_other_seed_another(digits: Samples) -> None:
    for kind in KINDS:
        data = Data(partition=kind, num_clients=7, alpha=0.3, min_samples=5)
        once, again = (make_partition(digits, data, 5).sha256 for _ in range(2))
        assert once == again
        assert make_partition(digits, data, 6).sha256 != once


@pytest.mark.parametrize(
    ("options", "sha256"),
    [
        ({}, "b53b2d263faa7200a46583ed9b914991ec50723ff334dbdfb7cab5dd8af96634"),
        ({"partition": "pathological"}, "c9c116054e52d0cf6d1c81f649181e386c248b7dd474b1160c45195254854f06"),
        (
            {"partition": "label_domain", "test_fraction": 0.25, "num_new_clients": 3},
            "b37003e5fc11c23685bba3c9bebcc686a3c7f69e30479feace8da331690a7107",
        ),
        ({"partition": "iid", "size_alpha": 0.5}, "6b6a399cb6e8567de5b5179f2ff7fbb64741ed7eb2e569c0808ee0c5ba725e3e"),
    ],
)
def test_partitions_are_the_same_on_every_platform(digits: Samples, options: dict[str, Any], sha256: str) -> None:
    assert make_partition(digits, Data(**options), 0).sha256 == sha256


def test_fingerprint_sees_a_move_between_clients_and_between_splits() -> None:
    def fingerprint(train: list[list[int]], test: list[list[int]]) -> str:
        return Partition(
            train=tuple(np.array(t, np.int64) for t in train), test=tuple(np.array(t, np.int64) for t in test)
        ).sha256

    prints = [
        fingerprint([[0, 1], [2]], [[3], [4]]),
        fingerprint([[0], [1, 2]], [[3], [4]]),
        fingerprint([[0, 1], [2]], [[4], [3]]),
        fingerprint([[0, 1], [2, 3]], [[], [4]]),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"alpha": 1e-9}, ["data.alpha=1e-09", "1e-06", "1e+06"]),
        ({"size_alpha": 1e-9}, ["data.size_alpha=1e-09", "1e-06", "1e+06"]),
        ({"size_alpha": 1.0, "partition": "pathological"}, ["data.size_alpha", "leave it out"]),
        ({"num_clients": 0}, ["data.num_clients=0", "data.num_clients to 1..782"]),
        # 7,823 training samples: 782 clients can have 10, and 783 clients 9.
        ({"num_clients": 783}, ["data.min_samples to 1..9", "data.num_clients to 1..782"]),
        ({"min_samples": 9000}, ["data.min_samples=9000", "data.min_samples to 1..391"]),
        # 2,797 test samples.
        ({"num_clients": 2798, "min_samples": 1}, ["2797 test", "data.num_clients to 1..2797"]),
        ({"partition": "domain", "num_clients": 1}, ["data.num_clients to 2..764", "mixes the domains"]),
        # MNIST has 1,000 test samples: the 2,002nd client would be its 1,001st.
        ({"partition": "domain", "num_clients": 2002, "min_samples": 1}, ["data.num_clients to 2..2001"]),
        # optdigits has 3,823 training samples for 10 of 20 clients.
        ({"partition": "domain", "min_samples": 383}, ["data.min_samples to 1..382"]),
        ({"num_clients": 780, "num_new_clients": 3}, ["data.num_new_clients=3", "data.num_clients to 1..779"]),
        # 10,620 samples: 13 are 10 for training and 3 for testing (3.25).
        ({"num_clients": 817, "test_fraction": 0.25}, ["10620 samples in all", "data.num_clients to 1..816"]),
        ({"num_clients": 4, "partition": "pathological"}, ["data.classes_per_client to 3..10"]),
        ({"classes_per_client": 11, "partition": "pathological"}, ["data.classes_per_client to 1..10"]),
        ({"partition": "pathological", "min_samples": 391}, ["data.min_samples", "fewer clients"]),
        ({"partition": "natural"}, ["no clients of its own"]),
    ],
)
def test_infeasible_requests_name_the_key_and_the_range(
    digits: Samples, change: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        make_partition(digits, Data(**change), 0)
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"partition": "iid"}, 1, 782),
        ({"partition": "dirichlet"}, 1, 782),
        ({"partition": "domain"}, 2, 764),
        ({"partition": "dirichlet", "test_fraction": 0.25}, 1, 816),
        ({"partition": "label_domain", "num_new_clients": 5}, 1, 759),
        ({"partition": "pathological", "classes_per_client": 10}, 1, 700),
    ],
)
def test_the_ends_of_the_stated_range_work(digits: Samples, options: dict[str, Any], least: int, most: int) -> None:
    for num_clients in (least, most):
        data = Data(**options, num_clients=num_clients)
        _check_guarantees(digits, make_partition(digits, data, 0), data)


def test_a_source_without_a_split_of_its_own_needs_a_fraction() -> None:
    x, y = np.zeros((40, 1, 1, 1), np.uint8), np.arange(40) % 2
    for is_test in (np.zeros(40, bool), np.ones(40, bool)):
        samples = make_samples(name="mine", x=x, y=y, classes=("a", "b"), is_test=is_test)
        with pytest.raises(UserError, match=r"mine: has no (test|training) samples.*data\.test_fraction"):
            make_partition(samples, Data(num_clients=2), 0)
        assert make_partition(samples, Data(num_clients=2, test_fraction=0.25), 0).left_out == 0


def test_a_class_that_no_client_trains_on_is_refused() -> None:
    y = np.array([0, 0, 2, 2] * 20)
    samples = make_samples(name="gap", x=np.zeros((80, 1, 1, 1), np.uint8), y=y, classes=("a", "b", "c"))
    with pytest.raises(UserError, match=r"gap: no client.*class b\. Set data\.classes"):
        make_partition(samples, Data(num_clients=2, test_fraction=0.25), 0)
