"""Every sample has one owner, every client has enough, and what cannot be had is refused by its key."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fedbsd_dist.data.partition import PARTITIONS, Partition, make_partition
from fedbsd_dist.data.sources import Samples, load_digits
from fedbsd_dist.data.tables import Ints
from fedbsd_dist.errors import UserError


@pytest.fixture(scope="module")
def digits() -> Samples:
    return load_digits()


def _random_samples(rng: np.random.Generator) -> Samples:
    """Unbalanced labels and domains; a class can be missing from training, or from test."""
    n, num_classes, num_domains = rng.integers(20, 300), int(rng.integers(1, 9)), int(rng.integers(1, 4))
    return Samples(
        name="random",
        x=np.zeros((n, 1, 1, 1), np.uint8),
        y=rng.choice(num_classes, n, p=rng.dirichlet(np.ones(num_classes))),
        domain=rng.choice(num_domains, n, p=rng.dirichlet(np.full(num_domains, 3.0))),
        is_test=rng.random(n) < rng.uniform(0.1, 0.6),
        classes=tuple(map(str, range(num_classes))),
        domains=tuple(map(str, range(num_domains))),
        mean=(0.0,),
        std=(1.0,),
    )


def _feasible(samples: Samples, kind: str, num_clients: int, min_samples: int) -> bool:
    pool = samples.domain if kind == "domain" else np.zeros_like(samples.domain)
    num_pools = len(samples.domains) if kind == "domain" else 1
    clients = Counter(client % num_pools for client in range(num_clients))
    return num_clients >= num_pools and all(
        (pool[~samples.is_test] == p).sum() >= clients[p] * min_samples
        and (pool[samples.is_test] == p).sum() >= clients[p]
        for p in range(num_pools)
    )


def _label_table(samples: Samples, owned: tuple[Ints, ...]) -> Ints:
    return np.stack([np.bincount(samples.y[indices], minlength=len(samples.classes)) for indices in owned])


def _check_guarantees(samples: Samples, partition: Partition, kind: str, min_samples: int) -> None:
    for owned, expected in ((partition.train, ~samples.is_test), (partition.test, samples.is_test)):
        assert np.array_equal(np.sort(np.concatenate(owned)), np.flatnonzero(expected))  # once each, none lost
        assert all(indices.dtype == np.int64 and (np.diff(indices) > 0).all() for indices in owned)
    assert min(partition.train_sizes) >= min_samples
    assert min(partition.test_sizes) >= 1
    num_pools = len(samples.domains) if kind == "domain" else 1
    table = _label_table(samples, partition.train)
    pool_trains_on = np.stack([table[pool::num_pools].any(axis=0) for pool in range(num_pools)])
    for client, (train, test) in enumerate(zip(partition.train, partition.test, strict=True)):
        if kind == "domain":
            assert set(samples.domain[np.concatenate([train, test])]) == {client % num_pools}
        # A test sample of a class that the client does not train on: only if nobody of its pool does,
        # or as the one sample of a client that could not be given another.
        untrained = np.setdiff1d(samples.y[test], samples.y[train])
        assert len(test) == 1 or not pool_trains_on[client % num_pools, untrained].any()


def test_guarantees_hold_or_the_request_is_refused() -> None:
    rng = np.random.default_rng(0)
    made: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for trial in range(450):
        samples = _random_samples(rng)
        kind = list(PARTITIONS)[trial % len(PARTITIONS)]
        num_clients = int(rng.integers(1, rng.choice([5, 20, 80])))
        min_samples = int(rng.integers(1, max(2, int(2 * (~samples.is_test).sum() // num_clients))))
        request: dict[str, Any] = {
            "kind": kind,
            "num_clients": num_clients,
            "alpha": float(10 ** rng.uniform(-6, 6)),
            "min_samples": min_samples,
            "seed": trial,
        }
        if _feasible(samples, kind, num_clients, min_samples):
            partition = make_partition(samples, **request)
            assert partition.num_clients == num_clients
            _check_guarantees(samples, partition, kind, min_samples)
            made[kind] += 1
        else:
            with pytest.raises(UserError, match=r"data\.num_clients"):
                make_partition(samples, **request)
            refused[kind] += 1
    assert min(made[kind] for kind in PARTITIONS) > 30
    assert min(refused[kind] for kind in PARTITIONS) > 30


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("num_clients", [1, 20, 782])
def test_digits_can_be_divided_at_every_alpha(digits: Samples, alpha: float, num_clients: int) -> None:
    partition = make_partition(digits, kind="dirichlet", num_clients=num_clients, alpha=alpha, min_samples=10, seed=0)
    _check_guarantees(digits, partition, "dirichlet", 10)


def test_alpha_goes_from_one_client_a_class_to_an_even_spread(digits: Samples) -> None:
    request: dict[str, Any] = {"kind": "dirichlet", "num_clients": 20, "min_samples": 1, "seed": 3}
    total = _label_table(digits, (np.flatnonzero(~digits.is_test),))[0]
    largest_share = []
    for alpha in (1e-3, 0.1, 1.0, 1e6):
        table = _label_table(digits, make_partition(digits, alpha=alpha, **request).train)
        largest_share.append((table.max(axis=0) / total).mean())
    assert largest_share == sorted(largest_share, reverse=True)
    assert largest_share[0] > 0.95
    assert np.abs(table - total / 20).max() <= 2


@pytest.mark.parametrize("kind", ["iid", "domain"])
def test_iid_clients_are_alike(digits: Samples, kind: str) -> None:
    """Within a pool, sizes and class counts differ by at most one training sample, domains are mixed."""
    partition = make_partition(digits, kind=kind, num_clients=14, alpha=0.1, min_samples=10, seed=0)
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
    partition = make_partition(digits, kind="dirichlet", num_clients=20, alpha=alpha, min_samples=10, seed=1)
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
    for kind in PARTITIONS:
        request: dict[str, Any] = {"kind": kind, "num_clients": 7, "alpha": 0.3, "min_samples": 5}
        once, again = (make_partition(digits, seed=5, **request).sha256 for _ in range(2))
        assert once == again
        assert make_partition(digits, seed=6, **request).sha256 != once


def test_the_default_partition_is_the_same_on_every_platform(digits: Samples) -> None:
    partition = make_partition(digits, kind="dirichlet", num_clients=20, alpha=0.1, min_samples=10, seed=0)
    assert partition.sha256 == "b53b2d263faa7200a46583ed9b914991ec50723ff334dbdfb7cab5dd8af96634"


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
        ({"kind": "shards"}, ["data.partition='shards'", "iid, dirichlet, domain"]),
        ({"alpha": 0.0}, ["data.alpha=0.0", "1e-06", "1e+06"]),
        ({"alpha": float("nan")}, ["data.alpha=nan"]),
        ({"alpha": float("inf")}, ["data.alpha=inf"]),
        ({"num_clients": 0}, ["data.num_clients=0", "data.num_clients to 1..782"]),
        # 7,823 training samples: 782 clients can have 10, and 783 clients 9.
        ({"num_clients": 783}, ["data.min_samples to 1..9", "data.num_clients to 1..782"]),
        ({"min_samples": 0}, ["data.min_samples=0", "data.min_samples to 1..391"]),
        ({"min_samples": 9000}, ["data.min_samples=9000", "data.min_samples to 1..391"]),
        # 2,797 test samples.
        ({"num_clients": 2798, "min_samples": 1}, ["2797 test", "data.num_clients to 1..2797"]),
        ({"kind": "domain", "num_clients": 1}, ["data.num_clients to 2..764", "mixes the domains"]),
        # MNIST has 1,000 test samples: the 2,002nd client would be its 1,001st.
        ({"kind": "domain", "num_clients": 2002, "min_samples": 1}, ["data.num_clients to 2..2001"]),
        # optdigits has 3,823 training samples for 10 of 20 clients.
        ({"kind": "domain", "min_samples": 383}, ["data.min_samples to 1..382"]),
    ],
)
def test_infeasible_requests_name_the_key_and_the_range(
    digits: Samples, change: dict[str, Any], says: list[str]
) -> None:
    request: dict[str, Any] = {
        "kind": "dirichlet",
        "num_clients": 20,
        "alpha": 0.1,
        "min_samples": 10,
        "seed": 0,
    }
    with pytest.raises(UserError) as caught:
        make_partition(digits, **(request | change))
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(("kind", "most"), [("iid", 782), ("dirichlet", 782), ("domain", 764)])
def test_the_ends_of_the_stated_range_work(digits: Samples, kind: str, most: int) -> None:
    for num_clients in (2 if kind == "domain" else 1, most):
        partition = make_partition(digits, kind=kind, num_clients=num_clients, alpha=0.1, min_samples=10, seed=0)
        _check_guarantees(digits, partition, kind, 10)
