"""Dealing, topping up and covering, on many random tables and against slower independent methods."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.data.tables import Ints, cover, deal, top_up


def _most_served(test_totals: Ints, trains_on: NDArray[np.bool_]) -> int:
    """Clients that can have a test sample of a class they train on: matching samples to clients (Kuhn)."""
    sample_class = np.repeat(np.arange(len(test_totals)), test_totals)
    owner = [-1] * len(sample_class)

    def serve(client: int, tried: set[int]) -> bool:
        for sample, c in enumerate(sample_class):
            if trains_on[client, c] and sample not in tried:
                tried.add(sample)
                if owner[sample] < 0 or serve(owner[sample], tried):
                    owner[sample] = client
                    return True
        return False

    return sum(serve(client, set()) for client in range(len(trains_on)))


def test_deal_is_the_largest_remainder() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        num_clients, num_classes = rng.integers(1, 12, 2)
        totals = rng.integers(0, 60, num_classes)
        weights = rng.integers(0, 5, (num_clients, num_classes)) * rng.integers(1, 2**32, num_classes)
        weights[0, weights.sum(axis=0) == 0] = 1
        table = deal(totals, weights)
        assert (table.sum(axis=0) == totals).all()
        assert (table[weights == 0] == 0).all()
        for c in range(num_classes):
            exact = [Fraction(int(totals[c]) * int(w), int(weights[:, c].sum())) for w in weights[:, c]]
            rounded_up = [e % 1 for e, got in zip(exact, table[:, c], strict=True) if got > e]
            rounded_down = [e % 1 for e, got in zip(exact, table[:, c], strict=True) if got <= e and e % 1]
            assert all(abs(got - e) < 1 for e, got in zip(exact, table[:, c], strict=True))
            assert not rounded_up or not rounded_down or min(rounded_up) >= max(rounded_down)


def test_deal_breaks_ties_by_who_has_least_and_then_by_index() -> None:
    assert deal(np.array([4, 2, 3]), np.ones((3, 3), np.int64)).tolist() == [[2, 0, 1], [1, 1, 1], [1, 1, 1]]


def test_deal_divides_a_class_of_no_weight_by_total_weight() -> None:
    assert deal(np.array([6, 6]), np.array([[1, 0], [2, 0]])).tolist() == [[2, 2], [4, 4]]


def test_top_up_moves_no_more_than_is_missing() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        num_clients, num_classes = rng.integers(1, 12, 2)
        before = rng.integers(0, 40, (num_clients, num_classes)) * (rng.random((num_clients, 1)) < 0.5)
        min_samples = int(rng.integers(0, before.sum() // num_clients + 1))
        after = before.copy()
        top_up(after, min_samples)
        assert (after >= 0).all()
        assert (after.sum(axis=0) == before.sum(axis=0)).all()
        assert after.sum(axis=1).min() >= min_samples
        missing = np.maximum(min_samples - before.sum(axis=1), 0).sum()
        assert np.abs(after - before).sum() <= 2 * missing
        enough = before.sum(axis=1) >= min_samples
        assert (after[enough] <= before[enough]).all()  # who has enough only gives


def test_top_up_takes_from_the_largest() -> None:
    table = np.array([[0, 0], [3, 4], [2, 9]])
    top_up(table, 3)
    assert table.tolist() == [[0, 3], [3, 4], [2, 6]]


def test_cover_serves_as_many_clients_as_any_assignment_can() -> None:
    rng = np.random.default_rng(3)
    chained, scarce = 0, 0
    for _ in range(400):
        num_clients, num_classes = rng.integers(1, 9), rng.integers(1, 6)
        train = rng.integers(1, 9, (num_clients, num_classes)) * (rng.random((num_clients, num_classes)) < 0.4)
        totals = rng.integers(0, 4, num_classes)
        totals[0] += max(num_clients - totals.sum(), 0)
        before = deal(totals, train + (train.sum() == 0))
        test = before.copy()
        cover(test, train)
        assert (test >= 0).all()
        assert (test.sum(axis=0) == totals).all()
        assert (test.sum(axis=1) >= 1).all()
        served = (test * (train > 0)).any(axis=1)
        most = _most_served(totals, train > 0)
        assert served.sum() == most
        had = (before * (train > 0)).any(axis=1)
        assert served[had].all()
        gave = (before > test).any(axis=1)
        chained += bool((gave & (before.sum(axis=1) == 1)).any())
        scarce += most < len(train)
    assert chained > 5  # the tables above do need samples passed along, ...
    assert scarce > 5  # ... and some clients cannot be served


def test_cover_prefers_the_class_the_client_trains_on_most() -> None:
    train = np.array([[1, 5, 2], [90, 90, 90]])
    test = np.array([[0, 0, 0], [9, 2, 9]])
    cover(test, train)
    assert test.tolist() == [[0, 1, 0], [9, 1, 9]]


def test_cover_passes_along_a_chain() -> None:
    train = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    test = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1]])
    cover(test, train)
    assert test.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
