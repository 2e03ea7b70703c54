"""How long a round's uploads and downloads take between n clients, by how they are connected: formulas, no network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FORMULAS = """\
Every client has one link into the middle of the network, and so has the server: latency l, bandwidths up and down. One
message of S bytes takes l of the sender + l of the receiver + S / min(sender's up, receiver's down), and messages share
a link that is too narrow for all. Of n clients, each with U bytes to upload and D to download in a round:

  star          l + l_server + max(U / up, n U / down_server), then l + l_server + max(D / down, n D / up_server)
  hierarchical  edge servers with links like the server's: a star of k = ceil(sqrt n) clients at each of them, and one
                of these ceil(n / k) edge servers at the server
  tree          ceil(log2 n) steps of 2 l + U / min(up, down), and as many with D
  ring          gloo's all-reduce: a phase with U, one with D, each of m = k (n - 1) segments of U / (k n) bytes,
                k = max(2, ceil(U / n / 1 MiB)). With r = 4 l, the round trip, and s = U / (k n) / min(up, down):
                r + m s if s >= r; ceil(m / 2) (r + s), and + s for even m, if s < r

Star and hierarchical have a server beside the n clients; in a ring or tree the n are all there is.
Of clients that differ, all wait for the slowest: the longest latency and the least bandwidths among the n, as the
median of random draws has them. Not in here: lost packets, TCP's start-up on connections that were idle, other traffic
on the links, the time to add up what arrives, stragglers in local learning."""

SEGMENT = 2**20
"""Bytes that gloo's all-reduce sends at once, at most."""
IN_FLIGHT = 2
"""Segments that it has under way at a time."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """From one client, or the server, into the middle of the network."""

    latency: float
    """Seconds, one way."""
    up: float
    """Bytes per second that programs can send: what protocols add is taken off."""
    down: float
    """The same for what is received."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one client in one round."""

    upload: float
    """Bytes."""
    download: float


Topology = Callable[[int, Traffic, Link, Link], float]
"""(number of clients, traffic of each, link of each, link of the server) -> seconds of a round's communication."""


def star(num_clients: int, traffic: Traffic, client: Link, server: Link) -> float:
    """All upload at once to one server, which then sends to all at once: its link is shared evenly among them."""
    latency = client.latency + server.latency
    up = max(traffic.upload / client.up, num_clients * traffic.upload / server.down)
    down = max(traffic.download / client.down, num_clients * traffic.download / server.up)
    return _of(traffic.upload, latency + up) + _of(traffic.download, latency + down)


def hierarchical(num_clients: int, traffic: Traffic, client: Link, server: Link) -> float:
    """Edge servers, whose links are like the server's, sum over sqrt(n) clients each, and the server over them."""
    size = math.isqrt(num_clients - 1) + 1
    groups = -(-num_clients // size)
    return star(size, traffic, client, server) + star(groups, traffic, server, server)


def tree(num_clients: int, traffic: Traffic, client: Link, server: Link) -> float:
    """Clients sum in pairs, then the sums in pairs, up to one of them; back the same way. No server takes part."""
    steps = (num_clients - 1).bit_length()
    latency, rate = 2 * client.latency, min(client.up, client.down)
    up, down = latency + traffic.upload / rate, latency + traffic.download / rate
    return steps * (_of(traffic.upload, up) + _of(traffic.download, down))


def ring(num_clients: int, traffic: Traffic, client: Link, server: Link) -> float:
    """gloo's all-reduce among the clients, as this package's runs have it; no server takes part, or it is one of them.

    Reduce-scatter, then all-gather: n - 1 parts of 1/n of the buffer each pass every rank's link, in two segments or
    more, so that none is larger than SEGMENT. IN_FLIGHT of them are under way at a time: a segment leaves when the
    receiver has got the one before the last, has asked for more, and the link is free. Hence a round trip, not a
    latency, for each step that the bandwidth does not hide.
    """
    if num_clients == 1:
        return 0.0
    round_trip, rate = 4 * client.latency, min(client.up, client.down)
    return sum(_phase(num_clients, size, round_trip, rate) for size in (traffic.upload, traffic.download))


def _phase(num_ranks: int, size: float, round_trip: float, rate: float) -> float:
    per_part = max(IN_FLIGHT, math.ceil(size / SEGMENT / num_ranks))
    count = (num_ranks - 1) * per_part
    segment = size / (num_ranks * per_part) / rate
    if segment >= round_trip:
        return _of(size, round_trip + count * segment)
    return _of(size, -(-count // 2) * (round_trip + segment) + (segment if count % 2 == 0 else 0.0))


def _of(size: float, seconds: float) -> float:
    """Nobody waits for what is not sent."""
    return seconds if size else 0.0


TOPOLOGIES: dict[str, Topology] = {"ring": ring, "tree": tree, "hierarchical": hierarchical, "star": star}


def slowest(links: Sequence[Link], num_clients: int) -> Link:
    """The longest latency and the least bandwidths among so many clients drawn from `links`, the median of all draws.

    As if of one client, though they may be of several: an upper bound. Of n draws from a distribution the worst is
    beyond its quantile 2**(-1/n) half of the time.
    """
    quantile = 0.5 ** (1 / num_clients)

    def worst(numbers: Sequence[float]) -> float:
        return float(np.quantile(numbers, quantile, method="inverted_cdf"))

    return Link(
        latency=worst([link.latency for link in links]),
        up=-worst([-link.up for link in links]),
        down=-worst([-link.down for link in links]),
    )
