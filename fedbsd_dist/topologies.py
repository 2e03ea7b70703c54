"""How long a round's uploads and downloads take between n clients, by how they are connected: formulas, no network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FORMULAS = """\
Every client has one link into the middle of the network, and so has the server: latency l, bandwidths up and down. One
message of S bytes takes l of the sender + l of the receiver + S / b, with b = min(sender's up, receiver's down); many
that share a link have each its part of it. Of n clients, each with U bytes to upload and D to download in a round:

  star          l + l_server + max(U / up, n U / down_server), then l + l_server + max(D / down, n D / up_server)
  hierarchical  edge servers with links like the server's: a star of k = ceil(sqrt n) clients at each of them, and one
                of these ceil(n / k) edge servers at the server
  tree          ceil(log2 n) steps of 2 l + U / b, and as many with D
  ring          gloo's all-reduce: a phase with U, one with D, each of m = k (n - 1) segments of U / (k n) bytes,
                k = max(2, ceil(U / n / 1 MiB)). With r = 4 l, the round trip, and s = U / (k n b) for a segment:
                r + m s if s >= r; ceil(m / 2) (r + s), and + s for even m, if s < r
  start-up      a TCP connection that was idle sends w = 10 packets and waits for the answer, then twice as many, and so
                on: r - w / b more each time, while w < b r and more is left to send

Star and hierarchical have a server beside the n clients; in a ring or tree the n are all there is.
Of clients that differ, all wait for the slowest: the longest latency and the least bandwidths among the n, as the
median of random draws has them. Not in here: lost packets, other traffic on the links, requests that wait behind data
on them, busy processors, the time to add up what arrives, stragglers in local learning."""

SEGMENT = 2**20
"""Bytes that gloo's all-reduce sends at once, at most."""
IN_FLIGHT = 2
"""Segments that it has under way at a time."""
WINDOW = 10 * 1448
"""Bytes that a TCP connection that is new, or was idle, sends before the first answer: RFC 6928, packets of 1500."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """From one client, or the server, into the middle of the network."""

    latency: float
    """Seconds, one way."""
    up: float
    """Bytes per second that programs can send: what protocols add is taken off."""
    down: float
    """The same for what is received."""
    window: float = WINDOW
    """Bytes under way on a connection when a round begins: infinite where it is not TCP, or has been kept busy."""


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
    latency, window = client.latency + server.latency, min(client.window, server.window)
    up = _message(traffic.upload, latency, min(client.up, server.down / num_clients), window)
    return up + _message(traffic.download, latency, min(client.down, server.up / num_clients), window)


def hierarchical(num_clients: int, traffic: Traffic, client: Link, server: Link) -> float:
    """Edge servers, whose links are like the server's, sum over sqrt(n) clients each, and the server over them."""
    size = math.isqrt(num_clients - 1) + 1
    groups = -(-num_clients // size)
    return star(size, traffic, client, server) + star(groups, traffic, server, server)


def tree(num_clients: int, traffic: Traffic, client: Link, server: Link) -> float:
    """Clients sum in pairs, then the sums in pairs, up to one of them; back the same way. No server takes part."""
    steps = (num_clients - 1).bit_length()
    rate = min(client.up, client.down)
    sizes = (traffic.upload, traffic.download)
    return steps * sum(_message(size, 2 * client.latency, rate, client.window) for size in sizes)


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
    total, window = 0.0, client.window
    for size in filter(None, (traffic.upload, traffic.download)):
        per_part = max(IN_FLIGHT, math.ceil(size / SEGMENT / num_clients))
        count, segment = (num_clients - 1) * per_part, size / (num_clients * per_part)
        total += _phase(count, segment / rate, round_trip)
        for _ in range(count // IN_FLIGHT):  # on one connection, which sends ever more
            if window >= min(IN_FLIGHT * segment, rate * round_trip):
                break
            lost, window = _start_up(IN_FLIGHT * segment, round_trip, rate, window)
            total += lost
    return total


def _phase(count: int, segment: float, round_trip: float) -> float:
    """Seconds of `count` segments that take `segment` seconds of the link each."""
    if segment >= round_trip:
        return round_trip + count * segment  # the link is never idle
    return -(-count // 2) * (round_trip + segment) + (segment if count % 2 == 0 else 0.0)


def _message(size: float, latency: float, rate: float, window: float) -> float:
    """Seconds from the first byte's departure to the last one's arrival; nobody waits for what is not sent."""
    return latency + size / rate + _start_up(size, 2 * latency, rate, window)[0] if size else 0.0


def _start_up(size: float, round_trip: float, rate: float, window: float) -> tuple[float, float]:
    """Seconds that a connection waits for answers while it sends so many bytes, and its window afterwards."""
    lost = 0.0
    while window < min(size, rate * round_trip):
        lost += round_trip - window / rate
        size -= window
        window *= 2
    return lost, window


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
        window=min(link.window for link in links),
    )
