"""Whether there are samples enough for what is asked; if not, what could be asked instead."""

from collections.abc import Sequence

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data import tables
from fedbsd_dist.data.samples import Bools, Ints, Samples
from fedbsd_dist.errors import UserError


def needed(min_samples: int, data: Data) -> int:
    """Samples a client must be dealt to have `min_samples` for training, besides those split off them."""
    for fraction in (data.val_fraction, data.test_fraction):
        min_samples = tables.size_with(min_samples, fraction) if fraction else min_samples
    return min_samples


def check(samples: Samples, pool_of: Ints, num_pools: int, data: Data) -> None:
    """Raises UserError unless client k can be served from pool k mod num_pools, for every k.

    `pool_of` [n] is each sample's pool.
    """
    own_test = samples.is_test & (data.test_fraction == 0)
    num_dealt = np.bincount(pool_of[~own_test], minlength=num_pools)
    num_test = np.bincount(pool_of[own_test], minlength=num_pools)
    pools = np.arange(num_pools)
    total = data.num_clients + data.num_new_clients

    def most_clients(min_samples: int, data: Data = data) -> int:
        room = num_dealt // needed(min_samples, data)  # clients that each pool can serve
        if not data.test_fraction:
            room = np.minimum(room, num_test)
        return int((pools + num_pools * room).min())  # client p + num_pools * room[p] is one too many

    def possible(min_samples: int, data: Data = data) -> bool:
        return data.num_clients >= 1 and num_pools <= total <= most_clients(min_samples, data)

    if possible(data.min_samples):
        return
    remedies = []
    if possible(1):
        clients_of = -(-(total - pools) // num_pools)
        most = (num_dealt // clients_of).min()
        while needed(int(most), data) > (num_dealt // clients_of).min():
            most -= 1
        remedies.append(f"data.min_samples to 1..{most}")
    for smaller in (data.min_samples, 1):
        if max(1, num_pools - data.num_new_clients) <= most_clients(smaller) - data.num_new_clients:
            within = f"{max(1, num_pools - data.num_new_clients)}..{most_clients(smaller) - data.num_new_clients}"
            remedies.append(f"data.num_clients to {within} with data.min_samples={smaller}")
            break
    if possible(data.min_samples, data.model_copy(update={"val_fraction": 0.0})):
        remedies.append("data.val_fraction lower")
    if num_pools > 1:
        remedies.append("data.partition to a kind that mixes the domains")
    new = f" and data.num_new_clients={data.num_new_clients}" if data.num_new_clients else ""
    of_domain = " of its domain" if num_pools > 1 else ""
    raise UserError(
        f"data.num_clients={data.num_clients}{new} with data.min_samples={data.min_samples} and "
        f"data.partition={data.partition} is impossible: each client needs that many training samples"
        f"{besides(data)} and 1 test sample{of_domain}, and {samples.name} has {_has(num_dealt, num_test)}. "
        f"Set {', or '.join(remedies) or 'data.root to a larger data set'}."
    )


def besides(data: Data) -> str:
    """What a client needs besides, for a message."""
    return f" besides validation samples (data.val_fraction={data.val_fraction})" if data.val_fraction else ""


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
            f"{needed}{besides(data)}. Set data.min_samples lower, or have fewer clients."
        )


def check_owners(owners: Sequence[str], enough: Bools, data: Data) -> None:
    """Raises UserError unless there are as many of the source's own clients with enough samples as asked for."""
    able = int(enough.sum())
    if data.num_clients == 0 and not enough.all():
        poor = [owners[owner] for owner in np.flatnonzero(~enough).tolist()]
        raise UserError(
            f"data.num_clients=0 asks for all {len(owners)} clients, but {len(poor)} of them (such as {poor[0]!r}) "
            f"have fewer than data.min_samples={data.min_samples} training samples{besides(data)}, or no test "
            f"sample. Set data.num_clients to 1..{able} to leave those out, or data.min_samples lower."
        )
    if max(1, data.num_clients) + data.num_new_clients > able:
        raise UserError(
            f"data.num_clients={data.num_clients} and data.num_new_clients={data.num_new_clients} are too many: "
            f"{able} of {len(owners)} clients have data.min_samples={data.min_samples} training samples"
            f"{besides(data)} and a test sample. Set them, or data.min_samples, lower; data.num_clients=0 takes all "
            "clients."
        )
