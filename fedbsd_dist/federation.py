"""The round: cohort -> local learning -> one reduction -> server step -> evaluation.

Every rank derives the cohort from (seed, round) and the new shared state from the reduction, so the
server commands nobody.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.clients import Clients
from fedbsd_dist.cohorts import draw_cohort
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.evaluation import COUNT, VALIDATED, VALIDATION, Stages
from fedbsd_dist.faults import Attendance, attend, named, shortened
from fedbsd_dist.methods.contract import AnyOptions, Method
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.testing import Testing, Tests
from fedbsd_dist.together import Turns, groups
from fedbsd_dist.wire.channel import Channel

STATE_DIGEST = "state digest"
"""Purpose of the collective that the end of a run adds to its ledger."""

REMEDY = "Lower the learning rate (train.lr, or the method's own where it has one), or raise fault.max_diverged_rounds."


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a round did; the same on every rank."""

    round: int
    cohort: list[int]
    attendance: Attendance
    diverged: list[int]
    """Of those who trained: they count for nothing, and keep the private state that they had."""
    losses: dict[str, float]
    """Mean over all samples of all steps of those whose training counts; empty where there is nobody."""
    stages: Stages
    """Those at which somebody was tested."""
    training_seconds: float
    evaluation_seconds: float
    phases: dict[str, np.ndarray]
    """Seconds of every rank [ranks] in each phase, from the last collective before the round to the round's last."""
    stop: bool
    """The run was asked to stop after this round."""


class Federation(Clients):
    """The clients of this rank, and its part in every round."""

    def __init__(
        self,
        config: RunConfig,
        method: Method[AnyOptions],
        model: FlatModel,
        channel: Channel,
        shards: Mapping[int, Shard],
        train_sizes: Sequence[int],
        private_file: Path | None = None,
    ) -> None:
        """`shards`: of this rank's clients, the new ones too. All clients begin with the model's present state.
        `train_sizes`: training samples of all clients that train, on whichever rank. `private_file`: as of `Clients`.
        """
        super().__init__(config, method, model, shards, channel.phases, private_file)
        self.channel, self._train_sizes = channel, train_sizes
        self._testing = Testing(self, self._learned, channel.at)
        self.diverged: dict[int, list[int]] = {}
        """Round -> the clients whose learning diverged in it; a run that goes on begins with those before."""

    def cohort(self, round: int) -> list[int]:
        """The clients of a round, ascending."""
        return draw_cohort(self.config, round)

    def round(self, number: int) -> Report:
        """One communication round; every rank calls it. `number` counts from 1.

        Gives the run up in the round of number `fault.max_diverged_rounds` in which a client's learning diverged.
        """
        last = number == self.config.train.rounds
        every = self.config.evaluate.every
        evaluate = not last and every > 0 and number % every == 0
        cohort = self.cohort(number)
        attendance = attend(self.config.fault, self.config.seed, number, cohort, self._train_sizes)
        self.channel.begin(number, self.shared)
        counts: dict[int, Tensor] = {}
        trained: Tests = {}
        testing = 0.0
        meanwhile: Callable[[], None] | None = None
        present = [*filter(self.shards.__contains__, attendance.present)]
        for turn, losses in self._learned(present, number, f"round {number}: {{}} learns"):
            with self.phases("reduce"):
                counts[turn.client] = self.upload(turn, losses)
            if evaluate and len(counts) == len(present):
                # the last one's model stays alive: it is tested while the sum is on its way
                meanwhile = partial(self._test_trained, turn, trained)
            elif evaluate:
                start = time.perf_counter()
                self._test_trained(turn, trained)
                testing += time.perf_counter() - start
        with self.phases("reduce"):
            aggregate = self.channel.reduce(number, testing, meanwhile)
        self.channel.at(f"round {number}: after the sum")
        diverged = self._diverged(number, counts) if aggregate.diverged else []
        if aggregate.weight:
            clients = self.config.data.num_clients
            with self.phases("reduce"):
                moved = self.method.update(self.shared, aggregate.groups, aggregate.weight, clients)
                self.shared = self.channel.kept(moved)
        start = time.perf_counter()
        stages: Stages = {}
        if last:
            with self.phases("evaluate"):
                everybody = self._testing.last(number + 1)
            stages = self._gather(number, everybody)
        elif evaluate:
            with self.phases("evaluate"):
                received = self._testing.received(number + 1)
            sound = {client: test for client, test in trained.items() if client not in diverged}
            stages = self._gather(number, {"received": received, "trained": sound})
        *sums, samples = aggregate.metrics
        totals = zip(self.method.losses, sums, strict=True)
        return Report(
            round=number,
            cohort=cohort,
            attendance=attendance,
            diverged=diverged,
            losses={name: float(total / samples) for name, total in totals if samples},
            stages=stages,
            training_seconds=aggregate.training_seconds,
            evaluation_seconds=aggregate.evaluation_seconds + time.perf_counter() - start,
            phases=self.channel.spent(),
            stop=aggregate.stop,
        )

    def _learned(self, clients: Sequence[int], round: int, doing: str) -> Iterator[tuple[Turn, Tensor]]:
        """After the local learning of each: its turn, with the live model as it then is, and what `learn` returned."""
        for group in groups(clients, self._train_sizes, self.config.train.together):
            self.channel.at(doing.format(named(group)))
            turns = [self.receive(client, round) for client in group]
            if len(turns) == 1:
                with self.phases("train"):
                    losses = self.method.learn(turns[0])
                yield turns[0], losses
            else:
                with self.phases("load"):
                    several = Turns(turns)
                with self.phases("train"):
                    losses = self.method.learn(several)
                yield from several.each(losses)

    def _test_trained(self, turn: Turn, tests: Tests) -> None:
        """The live model, just trained, as the client's personal one."""
        with self.phases("evaluate"):
            self.method.deploy(turn)
            tests[turn.client] = self._testing.of(turn)

    def upload(self, turn: Turn, losses: Tensor) -> Tensor:
        """Shared groups onto the channel, the others back into the client's row.

        Returns whether it counts, a bool tensor [] on the device: if the learning diverged, nothing is changed.
        """
        weight = self.method.weight(len(turn.labels))
        kept = {name: self.model.buffers[name] for name in turn.private}
        sound = torch.stack([values.isfinite().all() for values in kept.values()]).all() if kept else None
        shared = {name: self.model.buffers[name] for name in self.shared}
        counts = self.channel.add(shared, weight, losses, sound, client=turn.client)
        if kept:
            self.private.keep(turn.client, kept, counts)
        return counts

    def _diverged(self, round: int, counts: Mapping[int, Tensor]) -> list[int]:
        """Which clients did, where some did; every rank calls it. `counts`: of this rank's clients that trained.

        Gives the run up where it is once too often.
        """
        rows = {client: [not of_one] for client, of_one in counts.items()}
        table = self.channel.gather(rows, self.config.data.num_clients, 1, round=round, purpose="diverged")
        self.diverged[round] = [int(client) for client in table[:, 0].nonzero()[0]]
        if len(self.diverged) >= self.config.fault.max_diverged_rounds:
            rounds = [f"{named(clients)} in round {number}" for number, clients in self.diverged.items()]
            self.channel.fail(
                f"round {round}: learning diverged (values not finite, or beyond {self.channel.limit:g}), now in "
                f"{len(rounds)} round(s): {'; '.join(shortened(rounds))}. {REMEDY}"
            )
        return self.diverged[round]

    def _gather(self, round: int, stages: Mapping[str, Tests]) -> Stages:
        """Tables of all clients. A stage at which nobody was tested is left out."""
        validated = VALIDATED if self.config.data.val_fraction else ()
        widths = {stage: VALIDATION.stop if stage in validated else VALIDATION.start for stage in stages}
        # one wait for the device a stage
        found = {stage: torch.stack([*tests.values()]).tolist() if tests else [] for stage, tests in stages.items()}
        tests = {stage: dict(zip(stages[stage], found[stage], strict=True)) for stage in stages}
        rows = {
            client: [n for stage, width in widths.items() for n in tests[stage].get(client, [0.0] * width)]
            for client in self.shards
        }
        clients = self.config.data.num_clients + self.config.data.num_new_clients
        table = self.channel.gather(rows, clients, sum(widths.values()), round=round, purpose="evaluation")
        tables = dict(zip(stages, np.split(table, np.cumsum([*widths.values()])[:-1], axis=1), strict=True))
        return {stage: table for stage, table in tables.items() if table[:, COUNT].any()}

    def state_sha256(self, round: int) -> str:
        """Of the shared state and every client's private state in client order; each rank hashes its own
        clients', and only the digests cross.
        """
        private = self.private
        common = list(_sha256(private.start.values()))
        digests = {client: common for client in private.clients if private.start}
        digests |= {client: list(_sha256(state.values())) for client, state in private.learned().items()}
        clients = self.config.data.num_clients
        table = self.channel.gather(digests, clients, 32, round=round, purpose=STATE_DIGEST)
        return hashlib.sha256(_sha256(self.shared.values()) + table.astype("uint8").tobytes()).hexdigest()


def _sha256(tensors: Iterable[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.digest()
