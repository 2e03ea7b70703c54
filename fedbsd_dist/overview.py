"""A partition told in words and figures: whose samples are of which classes, and how unlike the clients are."""

import numpy as np

from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.heterogeneity import measure
from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.samples import Ints, Samples
from fedbsd_dist.record.console import table

MOST_COLUMNS = 15
"""Classes that get a column each; of more, every client's LARGEST are named."""
LARGEST = 3
MOST_ROWS = 40
"""Clients that get a row each; of more, the FIRST and the LAST."""
FIRST, LAST = 30, 5
LETTERS = 12
"""Of a class's name."""
SKEWED_BY = {"dirichlet": "alpha", "label_domain": "alpha", "pathological": "classes_per_client"}
"""The option of a partition that says how unlike its clients are."""


def lines(config: RunConfig, samples: Samples, partition: Partition) -> list[str]:
    """All of it."""
    new = f", and {partition.num_new} new" if partition.num_new else ""
    facts = {
        "source": of_source(samples),
        "partition": of_partition(config),
        "clients": f"{partition.num_clients}{new}",
        "left out": f"{partition.left_out} samples",
        "sha256": partition.sha256,
    }
    return [
        *_aligned(facts),
        "",
        "training samples of each class",
        *clients(samples, partition),
        "",
        *heterogeneity(samples, partition),
    ]


def of_source(samples: Samples) -> str:
    """Name, number and form of the samples."""
    n, height, width, channels = samples.x.shape
    colour = {1: "grey", 3: "colour"}[channels]
    domains = f", {len(samples.domains)} domains: {', '.join(samples.domains)}" if len(samples.domains) > 1 else ""
    return f"{samples.name}: {n} samples, {width}x{height} {colour}, {len(samples.classes)} classes{domains}"


def of_partition(config: RunConfig) -> str:
    """Its kind, with the options that it depends on."""
    data = config.data
    options = [SKEWED_BY[data.partition]] if data.partition in SKEWED_BY else []
    options += ["size_alpha"] if data.size_alpha else []
    origin = "as in the manifest" if data.manifest else f"seed={config.seed}"
    return ", ".join([data.partition, *(f"data.{name}={getattr(data, name)}" for name in options), origin])


def clients(samples: Samples, partition: Partition) -> list[str]:
    """A row a client: its samples, and of which classes its training samples are."""
    total = len(partition.train)
    cut = total > MOST_ROWS
    shown = [*range(FIRST), *range(total - LAST, total)] if cut else list(range(total))
    counts = partition.class_table(samples)[shown]
    columns = [
        ["client", *(f"{client} new" if client >= partition.num_clients else str(client) for client in shown)],
        *_domain_column(samples, partition, shown),
        ["train", *(str(partition.train_sizes[client]) for client in shown)],
        *([["val", *(str(partition.val_sizes[client]) for client in shown)]] if partition.val else []),
        ["test", *(str(partition.test_sizes[client]) for client in shown)],
        *(_a_column_each(samples, counts) if len(samples.classes) <= MOST_COLUMNS else _largest(samples, counts)),
    ]
    rows = [line.rstrip() for line in table(list(zip(*columns, strict=True))).splitlines()]
    if cut:
        rows.insert(1 + FIRST, f"... {total - FIRST - LAST} clients are not shown here; the files have all")
    return rows


def _domain_column(samples: Samples, partition: Partition, shown: list[int]) -> list[list[str]]:
    """Each client's domain, where there are several and any client is of one."""
    owned = [
        np.unique(samples.domain[np.concatenate([partition.train[k], partition.val_of(k), partition.test[k]])])
        for k in shown
    ]
    if len(samples.domains) == 1 or all(len(domains) > 1 for domains in owned):
        return []
    return [["domain", *(samples.domains[found[0]] if len(found) == 1 else "mixed" for found in owned)]]


def _a_column_each(samples: Samples, counts: Ints) -> list[list[str]]:
    """A dot where a client has none, so that the pattern is seen."""
    return [
        [_shortened(name), *(str(count) if count else "." for count in column.tolist())]
        for name, column in zip(samples.classes, counts.T, strict=True)
    ]


def _largest(samples: Samples, counts: Ints) -> list[list[str]]:
    """How many classes a client has, and its largest by name."""
    largest = ["of them the largest"]
    for row in counts:
        first = [c for c in np.argsort(-row, kind="stable")[:LARGEST] if row[c]]
        largest.append(", ".join(f"{_shortened(samples.classes[c])} {row[c]}" for c in first))
    width = max(map(len, largest))
    return [
        ["classes", *(str(number) for number in (counts > 0).sum(axis=1))],
        [cell.ljust(width) for cell in largest],
    ]


def heterogeneity(samples: Samples, partition: Partition) -> list[str]:
    """Each figure with its meaning."""
    found = measure(samples, partition)
    rows = {
        "mean number of classes": _figure(found.classes, "of which a client has training samples"),
        "mean effective number of classes": _figure(
            found.effective_classes, "exp of the entropy of a client's classes"
        ),
        "mean distance from the federation": _figure(
            found.from_federation, "total variation of classes, client to all: 0 alike, towards 1 disjoint"
        ),
        "mean distance of test from training": _figure(
            found.train_from_test, "the same between a client's own samples"
        ),
        "training samples": f"   smallest {found.smallest}, median {found.median:g}, largest {found.largest}",
        "their coefficient of variation": _figure(found.variation, "standard deviation over mean: 0 all of one size"),
    }
    return [f"over the {partition.num_clients} clients that train", *(f"  {line}" for line in _aligned(rows))]


def _figure(value: float, meaning: str) -> str:
    return f"{value:7.2f}   {meaning}"


def _aligned(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts))
    return [f"{name:{width}}  {fact}" for name, fact in facts.items()]


def _shortened(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
