"""How much of each class every client gets, as weights [num_clients, num_classes] that are dealt exactly."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data.samples import Bools, Ints
from fedbsd_dist.errors import UserError

ALPHA_MIN, ALPHA_MAX = 1e-6, 1e6  # at these ends a class is on one client, or spread evenly
SCALE = 2**32
"""Shares become multiples of 1 / SCALE, so that a platform's last float digit hardly ever matters."""


def check_alphas(data: Data) -> None:
    """Raises UserError for a concentration whose draws would not be numbers, or that nothing would be drawn by."""
    if data.size_alpha and (data.partition == "natural" or KINDS[data.partition].keeps_classes):
        raise UserError(
            f"data.size_alpha={data.size_alpha} has no meaning with data.partition={data.partition}: leave it out."
        )
    for name, alpha, used in (
        ("alpha", data.alpha, data.partition in ("dirichlet", "label_domain")),
        ("size_alpha", data.size_alpha, data.size_alpha != 0),
    ):
        if used and not ALPHA_MIN <= alpha <= ALPHA_MAX:
            raise UserError(
                f"data.{name}={alpha} is out of range: set it between {ALPHA_MIN:g} (all on one client) "
                f"and {ALPHA_MAX:g} (spread evenly)."
            )


def equal(counts: Ints, num_clients: int, data: Data, rng: np.random.Generator) -> Ints:
    """Each class is spread evenly."""
    return np.ones((num_clients, len(counts)), np.int64)


def dirichlet(counts: Ints, num_clients: int, data: Data, rng: np.random.Generator) -> Ints:
    """The clients' shares of each class are one draw from Dirichlet(alpha) (Yurochkin et al., ICML 2019).

    NumPy draws small alpha by stick breaking, so that the shares cannot all underflow to 0.
    """
    shares = rng.dirichlet(np.full(num_clients, data.alpha), size=len(counts))  # [num_classes, num_clients]
    weights: Ints = np.rint(shares.T * SCALE).astype(np.int64)
    return weights


def pathological(counts: Ints, num_clients: int, data: Data, rng: np.random.Generator) -> Ints:
    """Each client holds shards of `classes_per_client` classes (FedRep, arXiv 2102.07078, after McMahan et al.).

    All classes get as many shards as keeps the shards' sizes closest: of equal classes equally many. Who
    holds which is random. Raises UserError when clients cannot hold so many classes, or not all classes.
    """
    present = np.flatnonzero(counts)
    each, slots = data.classes_per_client, num_clients * data.classes_per_client
    if not len(present) / num_clients <= each <= len(present):
        raise UserError(
            f"data.classes_per_client={each} with {num_clients} clients is impossible: there are {len(present)} "
            f"classes, and each must be on some client. Set data.classes_per_client to "
            f"{-(-len(present) // num_clients)}..{len(present)}, or data.classes to those to keep."
        )
    shards = np.zeros(len(counts), np.int64)
    shards[present] = 1
    order = rng.permutation(present)  # whose turn it is among classes of equal shards
    for _ in range(slots - len(present)):
        # D'Hondt's rule: the next shard goes where shards are largest after it, which keeps the smallest largest
        sizes = np.where(shards < num_clients, counts / (shards + 1), 0)[order]
        shards[order[np.argmax(sizes)]] += 1
    return _hold(shards, num_clients, each, rng).astype(np.int64)


def _hold(shards: Ints, num_clients: int, each: int, rng: np.random.Generator) -> Bools:
    """Who holds a shard of which class: every row has `each`, column c has shards[c] <= num_clients.

    It always comes out: while no class has more shards left than clients are left, which taking first the
    classes that have as many keeps true, there is a class for every place.
    """
    holds = np.zeros((num_clients, len(shards)), np.bool_)
    left = shards.copy()
    for client in range(num_clients):
        # the smallest of exponentials over weights are a draw without replacement in proportion to the weights
        # (Efraimidis and Spirakis, 2006)
        keys = rng.exponential(size=len(left))
        keys = np.divide(keys, left, out=np.full(len(left), np.inf), where=left > 0)
        keys[left == num_clients - client] = 0
        chosen = np.argsort(keys, kind="stable")[:each]
        holds[client, chosen] = True
        left[chosen] -= 1
    assert not left.any()
    return holds


def skew_sizes(weights: Ints, data: Data, rng: np.random.Generator) -> Ints:
    """The weights of each client times its share of one draw from Dirichlet(size_alpha)."""
    # never 0, or nobody might be left for a class whose every owner got no size
    shares = rng.dirichlet(np.full(len(weights), data.size_alpha)) + 1e-9
    skewed = weights * shares[:, np.newaxis]
    scaled: Ints = np.rint(skewed / skewed.max(axis=0) * SCALE).astype(np.int64)
    return scaled


class Kind(NamedTuple):
    """One way to decide which client owns which sample."""

    weights: Callable[[Ints, int, Data, np.random.Generator], Ints]
    """(samples of each class [num_classes], num_clients, options, rng) -> [num_clients, num_classes]"""
    by_domain: bool = False
    """Whether client k draws from domain k mod num_domains alone, or all clients from all samples."""
    keeps_classes: bool = False
    """Whether a client may hold no class but those of its weights."""


KINDS = {
    "dirichlet": Kind(dirichlet),
    "iid": Kind(equal),
    "pathological": Kind(pathological, keeps_classes=True),
    "domain": Kind(equal, by_domain=True),
    "label_domain": Kind(dirichlet, by_domain=True),
}
