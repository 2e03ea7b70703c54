"""What crossed, when, and how long it took: one entry a collective."""

from dataclasses import dataclass, field


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
    """Adds up to `elements`; `scalars` are weights, metrics and clocks."""
    payload_bytes: int
    """Size of the buffer that every rank hands in."""
    wire_bytes: int
    """Sum over ranks of the bytes sent, by the ring model: 2(n-1) times the payload, headers apart (which
    are most of a payload below 4 kB)."""
    seconds: float
    """From the arrival of the last rank to the end: waiting for slow ranks is not communication."""


@dataclass
class Ledger:
    """Entries since the last `drain`, and nothing else: the record keeps them."""

    entries: list[Entry] = field(default_factory=list)

    def drain(self) -> list[Entry]:
        """Take the entries written since the last call."""
        entries, self.entries = self.entries, []
        return entries


def ring_bytes(payload_bytes: int, num_ranks: int) -> int:
    """Bytes that a ring all-reduce moves in total: each of n ranks sends 2(n-1)/n of the payload."""
    return 2 * (num_ranks - 1) * payload_bytes
