"""Whether there are samples enough for what is asked; if not, what could be asked instead."""

from collections.abc import Sequence

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data import tables
from fedbsd_dist.data.samples import Bools, Ints, Samples
from fedbsd_dist.errors import UserError


def needed(min_samples: int, test_fraction: float) -> int:
    """Samples a client must be dealt to have `min_samples` for training."""
    return tables.size_with(min_samples, test_fraction) if test_fraction else min_samples


def check(samples: Samples, pool_of: Ints, num_pools: int, data: Data) -> None:
    """Raises UserError unless client k can be served from pool k mod num_pools, for every k.

    `pool_of` [n] is each sample's pool.
    """
    own_test = samples.is_test & (data.test_fraction == 0)
    num_dealt = np.bincount(pool_of[~own_test], minlength=num_pools)
    num_test = np.bincount(pool_of[own_test], minlength=num_pools)
    pools = np.arange(num_pools)
    total = data.num_clients + data.num_new_clients

    def most_clients(min_samples: int) -> int:
        room = num_dealt // needed(min_samples, data.test_fraction)  # clients that each pool can serve
        if not data.test_fraction:
            room = np.minimum(room, num_test)
        return int((pools + num_pools * room).min())  # client p + num_pools * room[p] is one too many

    if data.num_clients >= 1 and num_pools <= total <= most_clients(data.min_samples):
        return
    remedies = []
    if data.num_clients >= 1 and num_pools <= total <= most_clients(1):
        clients_of = -(-(total - pools) // num_pools)
        most = (num_dealt // clients_of).min()
        while needed(int(most), data.test_fraction) > (num_dealt // clients_of).min():
            most -= 1
        remedies.append(f"data.min_samples to 1..{most}")
    for smaller in (data.min_samples, 1):
        if max(1, num_pools - data.num_new_clients) <= most_clients(smaller) - data.num_new_clients:
            within = f"{max(1, num_pools - data.num_new_clients)}..{most_clients(smaller) - data.num_new_clients}"
            remedies.append(f"data.num_clients to {within} with data.min_samples={smaller}")
            break
    if num_pools > 1:
        remedies.append("data.partition to a kind that mixes the domains")
    new = f" and data.num_new_clients={data.num_new_clients}" if data.num_new_clients else ""
    raise UserError(
        f"data.num_clients={data.num_clients}{new} with data.min_samples={data.min_samples} and "
        f"data.partition={data.partition} is impossible: each client needs that many training samples and 1 test "
        f"sample{' of its domain' if num_pools > 1 else ''}, and {samples.name} has {_has(num_dealt, num_test)}. "
        f"Set {', or '.join(remedies) or 'data.root to a larger data set'}."
    )


def _has(num_dealt: Ints, num_test: Ints) -> str:
    if num_test.any():
        return f"{_sum(num_dealt)} training and {_sum(num_test)} test samples"
    return f"{_sum(num_dealt)} samples in all"


def _sum(numbers: Ints) -> str:
    return " + ".join(str(number) for number in numbers)


def check_smallest(smallest: int, needed: int, data: Data) -> None:
    """Raises UserError where a client is too small that may be given no other classes."""
    if smallest < needed:
        raise UserError(
            f"data.min_samples={data.min_samples} with data.partition={data.partition} is impossible: the smallest of "
            f"the {data.num_clients + data.num_new_clients} clients gets {smallest} samples of its classes, and needs "
            f"{needed}. Set data.min_samples lower, or have fewer clients."
        )


def check_owners(owners: Sequence[str], enough: Bools, data: Data) -> None:
    """Raises UserError unless there are as many of the source's own clients with enough samples as asked for."""
    able = int(enough.sum())
    if data.num_clients == 0 and not enough.all():
        poor = [owners[owner] for owner in np.flatnonzero(~enough).tolist()]
        raise UserError(
            f"data.num_clients=0 asks for all {len(owners)} clients, but {len(poor)} of them (such as {poor[0]!r}) "
            f"have fewer than data.min_samples={data.min_samples} training samples, or no test sample. "
            f"Set data.num_clients to 1..{able} to leave those out, or data.min_samples lower."
        )
    if max(1, data.num_clients) + data.num_new_clients > able:
        raise UserError(
            f"data.num_clients={data.num_clients} and data.num_new_clients={data.num_new_clients} are too many: "
            f"{able} of {len(owners)} clients have data.min_samples={data.min_samples} training samples and a test "
            "sample. Set them, or data.min_samples, lower; data.num_clients=0 takes all clients."
        )
