"""What crossed, when, and how long it took: one entry a collective."""

from dataclasses import dataclass, field

ALL_REDUCE, ALL_TO_ALL, ALL_GATHER = "all-reduce", "all-to-all", "all-gather"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One collective. Bytes and seconds are of the collective, not of the whole round."""

    round: int
    """0: before the first round."""
    purpose: str
    group: str
    """Parameter groups carried, joined by +; `-` when the collective carries none."""
    dtype: str
    elements: int
    elements_by_group: dict[str, int]
    """Adds up to `elements`; `scalars` are weights, metrics and clocks, and of a codec its scales."""
    payload_bytes: int
    """Size of the buffer that every rank hands in."""
    wire_bytes: int
    """Sum over ranks of the bytes sent, by the ring model (`ring_bytes`), headers apart (which are most of a payload
    below 4 kB)."""
    seconds: float
    """From the arrival of the last rank to the end: waiting for slow ranks is not communication."""
    collective: str = ALL_REDUCE
    """Which of the three it is."""


@dataclass
class Ledger:
    """Entries since the last `drain`, and nothing else: the record keeps them."""

    entries: list[Entry] = field(default_factory=list)

    def drain(self) -> list[Entry]:
        """Take the entries written since the last call."""
        entries, self.entries = self.entries, []
        return entries


def ring_bytes(payload_bytes: int, num_ranks: int, collective: str = ALL_REDUCE) -> int:
    """Bytes that n ranks send in total, where each hands in the payload: in a ring, an all-reduce has each send
    2(n-1)/n of it; an all-to-all (n-1)/n of it, all but its own part; an all-gather n-1 times as much.
    """
    once = (num_ranks - 1) * payload_bytes
    return {ALL_REDUCE: 2 * once, ALL_TO_ALL: once, ALL_GATHER: num_ranks * once}[collective]
