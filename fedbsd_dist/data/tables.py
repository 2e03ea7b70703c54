"""Integer tables [num_clients, num_classes]: how many samples of each class a client gets.

All arithmetic is on integers and every tie is broken by index, so that platforms agree exactly.
"""

from collections import deque

import numpy as np

from fedbsd_dist.data.samples import Ints


def deal(totals: Ints, weights: Ints) -> Ints:
    """Divide totals [num_classes] in proportion to each class's weights [num_clients, num_classes].

    Largest remainder: a class is dealt out entirely, nobody is off its exact share by a sample or more,
    and weight 0 gets nothing. Equal remainders go to whoever has least so far, which keeps equal weights
    at equal sizes. A class in which every weight is 0 is divided by the clients' total weight.
    """
    table = np.zeros_like(weights)
    sizes = np.zeros(len(weights), np.int64)
    for c, total in enumerate(totals):
        weight = weights[:, c] if weights[:, c].any() else weights.sum(axis=1)
        share, remainder = np.divmod(total * weight, weight.sum())
        first = np.lexsort((sizes, -remainder))  # stable: the last tie goes to the lower index
        share[first[: total - share.sum()]] += 1
        table[:, c] = share
        sizes += share
    return table


def top_up(train: Ints, min_samples: int) -> None:
    """Bring every client to `min_samples`, one sample at a time from the largest client's largest class.

    While a client is short, the largest is above the average, hence above `min_samples`, if there are
    num_clients * min_samples samples at all: no donor becomes short, and the moves are as many as missing.
    """
    sizes = train.sum(axis=1)
    for client in np.flatnonzero(sizes < min_samples):
        for _ in range(min_samples - sizes[client]):
            donor = np.argmax(sizes)
            c = np.argmax(train[donor])
            train[[donor, client], c] += (-1, 1)
            sizes[[donor, client]] += (-1, 1)


def split(table: Ints, fraction: float) -> Ints:
    """The test part of a table: of each client, `test_size` samples, in proportion to its classes.

    Largest remainder, but a class with a sample for both sides keeps one for training.
    """
    test = np.zeros_like(table)
    for row, chosen in zip(table, test, strict=True):
        wanted = test_size(int(row.sum()), fraction)
        share, remainder = np.divmod(wanted * row, max(1, row.sum()))
        last = share + 1 >= row  # would leave nothing to train on
        for c in np.lexsort((-remainder, last)):
            if share.sum() == wanted:
                break
            share[c] += share[c] < row[c]
        chosen[:] = share
    return test


def test_size(size: int, fraction: float) -> int:
    """Samples of a client of `size` that are its test set: the nearest whole number, at least 1."""
    return max(1, int(size * fraction + 0.5))


def size_with(min_samples: int, fraction: float) -> int:
    """The smallest client that has `min_samples` left for training after its test set is taken."""
    size = max(min_samples + 1, int((min_samples - 0.5) / (1 - fraction)) - 1)
    while size - test_size(size, fraction) < min_samples:
        size += 1
    return size


def cover(test: Ints, train: Ints) -> None:
    """Bring every client to one test sample, of a class it trains on wherever that is possible at all."""
    trains_on = train > 0
    for client in np.flatnonzero((test * trains_on).sum(axis=1) == 0):
        _pass_along(int(client), test, train)
    for client in np.flatnonzero(test.sum(axis=1) == 0):  # no class it trains on can be had
        donor = np.argmax(test.sum(axis=1))
        untrained = np.where(trains_on[donor], 0, test[donor])
        c = np.argmax(untrained if untrained.any() else test[donor])
        test[[donor, client], c] += (-1, 1)


def _pass_along(client: int, test: Ints, train: Ints) -> None:
    """Give `client` a sample of a class it trains on, if need be through clients that have only one.

    A client with a single sample can pass it on if it receives one of another class it trains on. The
    shortest such chain from a client with samples to spare is an augmenting path in the matching of
    clients to samples (Berge, 1957): where none exists, no other assignment would serve more clients.
    """
    trains_on = train > 0
    own = test * trains_on
    sizes = own.sum(axis=1)
    commonest = np.argsort(-train[client], kind="stable")
    queue = deque(int(c) for c in commonest if trains_on[client, c])
    receives: dict[int, tuple[int, int | None]] = dict.fromkeys(queue, (client, None))
    # receives[c] = (who gets a sample of class c, the class it passes on for that)
    while queue:
        c = queue.popleft()
        holders = np.flatnonzero(own[:, c])
        if holders.size and sizes[holders].max() > 1:
            giver = int(holders[np.argmax(sizes[holders])])
            wanted: int | None = c
            while wanted is not None:
                receiver, passed_on = receives[wanted]
                test[[giver, receiver], wanted] += (-1, 1)
                giver, wanted = receiver, passed_on
            return
        for other in map(int, np.flatnonzero(trains_on[holders].any(axis=0))):
            if other not in receives:
                receives[other] = (int(holders[np.argmax(trains_on[holders, other])]), c)
                queue.append(other)
