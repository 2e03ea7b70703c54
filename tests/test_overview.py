"""What is printed of a partition: hand-worked figures, and tables of few and of many clients."""

import numpy as np
import pytest

from fedbsd_dist import overview
from fedbsd_dist.data.heterogeneity import measure
from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.samples import Samples, make_samples


def dealt(
    labels: list[tuple[str, str]],
    *,
    num_new: int = 0,
    num_classes: int = 0,
    domains: str = "",
    side: int = 1,
    ch: int = 1,
) -> tuple[Samples, Partition]:
    """Clients of the classes that letters a, b, ... name, (training, test) each; `domains`: a digit a client."""
    y = np.array([ord(letter) - ord("a") for both in labels for part in both for letter in part])
    ends = np.cumsum([len(part) for both in labels for part in both])
    owned = np.split(np.arange(len(y)), ends[:-1])
    num_classes = num_classes or int(y.max()) + 1
    owner = np.repeat(np.arange(len(labels)), [len(train + test) for train, test in labels])
    samples = make_samples(
        name="hand-made",
        x=np.random.default_rng(0).integers(0, 256, (len(y), side, side, ch)).astype(np.uint8),
        y=y,
        classes=[f"kind {c}" for c in range(num_classes)],
        domain=np.array([int(domains[k]) for k in owner]) if domains else None,
        domains=("left", "right") if domains else ("all",),
    )
    return samples, Partition(train=tuple(owned[0::2]), test=tuple(owned[1::2]), num_new=num_new)


def test_figures_worked_out_by_hand() -> None:
    """Federation: 1/6, 1/6, 4/6. The client from it: (2/6 + 2/6 + 4/6) / 2, and (1/6 + 1/6 + 2/6) / 2."""
    samples, partition = dealt([("aabb", "ab"), ("cccccccc", "a"), ("abc" * 50, "b")], num_new=1)
    found = measure(samples, partition)
    assert (found.classes, found.from_federation) == (1.5, pytest.approx((2 / 3 + 1 / 3) / 2))
    assert found.effective_classes == pytest.approx((2 + 1) / 2)
    assert found.train_from_test == pytest.approx((0 + 1) / 2)
    assert (found.smallest, found.median, found.largest, found.variation) == (4, 6, 8, pytest.approx(2 / 6))


def test_figures_of_uneven_classes_and_of_clients_all_alike() -> None:
    samples, partition = dealt([("aaab", "aabb"), ("baaa", "aabb")])
    found = measure(samples, partition)
    assert found.effective_classes == pytest.approx(4 / 3**0.75)  # exp of -(3/4 ln 3/4 + 1/4 ln 1/4)
    assert (found.classes, found.from_federation, found.train_from_test, found.variation) == (2, 0, 0.25, 0)


def test_the_figures_are_printed_with_their_names() -> None:
    samples, partition = dealt([("aabb", "ab"), ("cccccccc", "a"), ("abc" * 50, "b")], num_new=1)
    heading, *rows = overview.heterogeneity(samples, partition)
    assert "2 clients that train" in heading
    values = {row[:38].strip(): row[38:].split()[0] for row in rows}
    assert values == {
        "mean number of classes": "1.50",
        "mean effective number of classes": "1.50",
        "mean distance from the federation": "0.50",
        "mean distance of test from training": "0.50",
        "training samples": "smallest",
        "their coefficient of variation": "0.33",
    }
    assert "smallest 4, median 6, largest 8" in rows[4]


def test_a_row_a_client_with_dots_new_ones_and_domains() -> None:
    samples, partition = dealt([("aab", "c"), ("c", "cc"), ("ba", "a")], num_new=1, domains="010")
    assert [row.split() for row in overview.clients(samples, partition)] == [
        ["client", "domain", "train", "test", "kind", "0", "kind", "1", "kind", "2"],
        ["0", "left", "3", "1", "2", "1", "."],
        ["1", "right", "1", "2", ".", ".", "1"],
        ["2", "new", "left", "2", "1", "1", "1", "."],
    ]


def test_no_domain_is_named_where_it_would_tell_nothing() -> None:
    one, partition = dealt([("a", "a"), ("b", "b")])
    assert "domain" not in overview.clients(one, partition)[0]
    several, _ = dealt([("a", "a"), ("b", "b")], domains="01")
    crossed = Partition(train=partition.train, test=partition.test[::-1])
    assert "domain" not in overview.clients(several, crossed)[0]
    half = Partition(train=(np.array([0, 2]), np.array([3])), test=(np.array([1]), np.array([3])))
    assert [row.split()[1] for row in overview.clients(several, half)] == ["domain", "mixed", "right"]


def test_many_classes_are_told_by_their_number_and_the_largest() -> None:
    labels = [("abbcdddd", "a"), ("e", "e")]
    wide = overview.clients(*dealt(labels, num_classes=overview.MOST_COLUMNS))
    assert "kind 14" in wide[0]
    narrow = overview.clients(*dealt(labels, num_classes=overview.MOST_COLUMNS + 1))
    assert "kind 14" not in narrow[0]
    assert narrow[1].split(maxsplit=4) == ["0", "8", "1", "4", "kind 3 4, kind 1 2, kind 0 1"]
    assert narrow[2].split(maxsplit=4) == ["1", "1", "1", "1", "kind 4 1"]


def test_long_tables_are_cut_and_say_so() -> None:
    whole = overview.clients(*dealt([("a", "a")] * overview.MOST_ROWS))
    assert [row.split()[0] for row in whole[1:]] == [str(client) for client in range(40)]
    cut = overview.clients(*dealt([("a", "a")] * 40 + [("b", "bb")], num_new=1))
    assert [row.split()[0] for row in cut[1:31]] == [str(client) for client in range(30)]
    assert cut[31].startswith("... 6 clients are not shown")
    assert [row.split()[0] for row in cut[32:]] == ["36", "37", "38", "39", "40"]
    assert cut[-1].split() == ["40", "new", "1", "2", ".", "1"]
