"""Clients that are away, late or diverge: what is left of the round is as if they had not been drawn."""

import csv
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import reference
import test_parity as parity
import torch
from ranks import federate, run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_bad_input import overheard
from test_federation import build
from test_interface import alone
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedbsd_dist import report
from fedbsd_dist.client import Turn
from fedbsd_dist.commandline import load
from fedbsd_dist.config import Fault
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.errors import RunFailed
from fedbsd_dist.faults import attend, named
from fedbsd_dist.federation import Federation, Report
from fedbsd_dist.methods import METHODS, OPTIONS
from fedbsd_dist.plan import make_plan
from fedbsd_dist.randomness import generator
from fedbsd_dist.record.recorder import diverged_before
from fedbsd_dist.wire.world import World, meet

Lines = list[dict[str, Any]]

ROUNDS, CLIENTS, SEED = parity.ROUNDS, parity.CLIENTS, 48
DROPOUT, SLOW, SLOWDOWN, DEADLINE = 0.3, 0.3, 3.0, 1.5
FAULTY = (
    *parity.COMMON,
    f"seed={SEED}",  # which has a round of nobody, clients that come back, and ones that never do
    f"fault.dropout={DROPOUT}",
    f"fault.slow={SLOW}",
    f"fault.slowdown={SLOWDOWN}",
    f"fault.deadline={DEADLINE}",
    "evaluate.head_epochs=0",
)
OWN_OPTIONS = {
    "fedbsd": "distillation_weight: 2.0",
    "pfedme": "lr: 0.03, steps: 3, beta: 0.5",
    "per_fedavg": "alpha: 0.1, beta: 0.2",
    "apfl": "learn_alpha: true",
    "scaffold": "server_lr: 0.7",
    "fedrep": "head_epochs: 2",
    "fedavg_ft": "finetune_epochs: 1",
    "fedbabu": "finetune_epochs: 1",
}
WITH_NORM = "fedbn"
AXIS = "method=[{}]".format(
    ", ".join(f"{{name: {name}, {OWN_OPTIONS.get(name, '')}}}" for name in METHODS if name != WITH_NORM)
)
LAUNCHES = ((*FAULTY, *parity.SMOOTH, AXIS), (*FAULTY, *parity.NORMALISED, f"method.name=[{WITH_NORM}]"))
"""One launch for all methods that train the same network."""


def lines_of(run: Path) -> Lines:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def attendance(seed: int, round: int, sizes: list[int]) -> tuple[list[int], list[int], list[int], float]:
    """Who of the cohort is present, late, unavailable, and how long it takes: by the words of the options."""
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    takes = []
    for client in sorted(generator(seed, "cohort", round).choice(CLIENTS, parity.COHORT, replace=False).tolist()):
        if generator(seed, "unavailable", round, client).random() < DROPOUT:
            found[2].append(client)
            continue
        time = sizes[client] / (sum(sizes) / len(sizes))
        if generator(seed, "slow", round, client).random() < SLOW:
            time *= SLOWDOWN
        found[time > DEADLINE].append(client)
        takes.append(min(time, DEADLINE))
    return *found, max(takes, default=0.0)


@pytest.fixture(scope="module")
def sizes() -> list[int]:
    """Training samples of every client of the faulty runs."""
    data = load([*FAULTY, "method.name=fedavg"], OPTIONS).data
    return list(make_partition(sources.load(data), data, SEED).train_sizes)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> dict[str, Path]:
    """Method -> its run on 3 ranks."""
    folder = tmp_path_factory.mktemp("faulty")
    for options in LAUNCHES:
        federate(Path("auto"), 3, *options, f"sweep.dir={folder}")
    return by_method(folder)


def by_method(folder: Path) -> dict[str, Path]:
    return {summary(path.parent)["method"]: path.parent for path in folder.glob("*/summary.json")}


def test_the_faults_are_not_trivial(sizes):
    rounds = [attendance(SEED, number, sizes) for number in range(1, ROUNDS + 1)]
    assert [len(present) for present, *_ in rounds] == [3, 0, 3]
    first, _, last = (set(present) for present, *_ in rounds)
    late = {client for _, late, _, _ in rounds for client in late}
    assert late & first & last  # trained, is late, trains again
    assert set(range(CLIENTS)) - first - last


@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_its_reference_without_the_missing(faulty, sizes, method):
    run = faulty[method]
    config = load([str(run / "config.yaml")], OPTIONS)
    own, inputs = parity.make_inputs(config)
    inputs["cohorts"] = [attendance(SEED, number, sizes)[0] for number in range(1, ROUNDS + 1)]
    expected = reference.federate(own, **inputs)
    case = parity.Case(config=config, run=run, method=own, inputs=inputs, expected=expected, tests={})
    parity.test_shared_state(case)
    parity.test_private_states(case)
    assert_losses(run, expected)


def assert_losses(run: Path, expected: reference.Trained) -> None:
    for line, losses in zip(lines_of(run), expected.losses, strict=True):
        assert list(line["loss"].values()) == pytest.approx([float(of_one) for of_one in losses], rel=1e-6, abs=1e-6)


def test_any_number_of_ranks_and_a_stop_leave_the_same_bits(faulty, tmp_path, monkeypatch):
    """Every method, on one rank, given up in its last round and gone on with from the checkpoint before."""
    done = Federation.round

    def stop(self, number: int) -> Report:
        if number == ROUNDS:
            raise RunFailed("stopped here.")
        return done(self, number)

    for options in LAUNCHES:
        again = (*options, f"sweep.dir={tmp_path}", "checkpoint.every=1")
        with monkeypatch.context() as patch:
            patch.setattr(Federation, "round", stop)
            assert alone(*again) == 2
        assert alone(*again, "run.resume=auto") == 0
    runs = by_method(tmp_path)
    assert runs.keys() == faulty.keys() == METHODS.keys()
    for method, run in runs.items():
        assert summary(run)["state_sha256"] == summary(faulty[method])["state_sha256"], method
        assert summary(run)["accuracy"] == summary(faulty[method])["accuracy"], method
        assert [{**line, "seconds": 0, "bytes": 0} for line in lines_of(run)] == [
            {**line, "seconds": 0, "bytes": 0} for line in lines_of(faulty[method])
        ]


def test_the_record_says_who_was_missing_and_what_crossed(faulty, sizes):
    run = faulty["fedavg"]
    model = 4 * sum(summary(run)["parameters"].values())
    for line in lines_of(run):
        present, late, unavailable, duration = attendance(SEED, line["round"], sizes)
        assert line["faults"] == {"unavailable": unavailable, "late": late, "diverged": []}
        assert line["cohort"] == parity.COHORT
        assert line["duration"] == pytest.approx(duration, rel=1e-12)
        assert line["bytes"]["federated_up"] == model * len(present)
        assert line["bytes"]["federated_down"] == model * (len(present) + len(late))
        assert bool(line["loss"]) == bool(present)
    facts = summary(run)
    # FedAvg is faced with the same faults
    assert facts["fedavg_bytes"] == facts["bytes"]["federated_up"] + facts["bytes"]["federated_down"]
    for kind, total in facts["faults"].items():
        assert total == sum(len(line["faults"][kind]) for line in lines_of(run))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for kind in ("unavailable", "late", "diverged"):
        shown = [event.value for event in events.Scalars(f"faults/{kind}")]
        assert shown == [len(line["faults"][kind]) for line in lines_of(run)]
    assert [event.value for event in events.Scalars("faults/duration")] == pytest.approx(
        [line["duration"] for line in lines_of(run)]
    )


# the draws


def present_of(fault: Fault, seed: int = 0, round: int = 1, cohort: range = range(1000)) -> set[int]:
    return set(attend(fault, seed, round, cohort, [10] * 1000).present)


def test_draws_are_each_clients_own_and_as_frequent_as_asked_for():
    some = present_of(Fault(dropout=0.3))
    assert 650 < len(some) < 750  # 3.4 standard deviations
    assert present_of(Fault(dropout=0.3), cohort=range(500)) == {client for client in some if client < 500}
    assert present_of(Fault(dropout=0.6)) < some
    assert len({frozenset(present_of(Fault(dropout=0.3), seed, round)) for seed in (0, 1) for round in (1, 2)}) == 4
    slow = present_of(Fault(slow=0.3, deadline=2.0))
    assert 650 < len(slow) < 750
    assert len(some & slow) < 560  # 490 are to be expected: one draw does not decide both
    assert present_of(Fault(slow=0.3, deadline=2.0, dropout=0.3)) == some & slow
    assert present_of(Fault()) == present_of(Fault(slow=1.0)) == set(range(1000))
    assert present_of(Fault(dropout=1.0)) == present_of(Fault(slow=1.0, deadline=3.9)) == set()
    assert present_of(Fault(slow=1.0, deadline=4.0)) == set(range(1000))


def test_who_has_more_samples_takes_longer():
    sizes = [10, 20, 30, 40]  # mean 25
    found = attend(Fault(deadline=1.3), 0, 1, [0, 2, 3], sizes)
    assert (found.present, found.late, found.unavailable, found.duration) == ([0, 2], [3], [], 1.3)
    found = attend(Fault(slow=1.0, slowdown=2.0), 0, 1, [0, 2], sizes)
    assert (found.present, found.duration) == ([0, 2], 2.4)
    assert attend(Fault(dropout=1.0, deadline=1.0), 0, 1, [0, 2], sizes).duration == 0


def test_the_plan_says_who_can_never_be_in_time(sizes):
    late = sum(size / (sum(sizes) / len(sizes)) > DEADLINE for size in sizes)
    assert 0 < late < CLIENTS
    text = make_plan(load([*FAULTY, "method.name=fedavg"], OPTIONS), meet()).text
    assert f"{late} have too many samples for fault.deadline" in text
    assert "fault.deadline" not in make_plan(load([*FAULTY, "fault.deadline=0.0"], OPTIONS), meet()).text


# rounds of nobody


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("fault.dropout=1.0",), "unavailable"),
        (("fault.deadline=0.01", "method.name=local"), "late"),
        (("train.lr=1e30", "method.name=scaffold"), "diverged"),
    ],
)
def test_a_run_in_which_nothing_counts_is_recorded_to_its_end(options, kind, tmp_path, capsys):
    """With all that is evaluated on the way and shown of it; the shared state stays as all began."""
    run = tmp_path / "run"
    further = ("data.num_clients=4", "train.rounds=2", "train.batch_size=256", "model.name=mlp", "checkpoint.every=1")
    assert alone(*further, *options, "data.val_fraction=0.1", "evaluate.every=1", f"run.dir={run}") == 0
    out = capsys.readouterr().out
    assert out.count("no upload counts") == 2
    assert f"2 {kind}, a client counted once a round" in out
    first, last = lines_of(run)
    for line in (first, last):
        assert line["loss"] == {}
        assert line["accuracy"]["received"] == first["accuracy"]["received"]
        assert {kind: len(clients) for kind, clients in line["faults"].items() if clients} == {kind: 1}
    for stages in (first["accuracy"], first["validation"]):  # at the end, all learn once more
        assert stages.keys() == {"received"}
    assert summary(run)["faults"] == {"unavailable": 0, "late": 0, "diverged": 0, kind: 2}
    one, two = (torch.load(run / f"checkpoints/round-00000{n}/shared.pt", weights_only=True) for n in (1, 2))
    assert all(torch.equal(one[group], two[group]) for group in one)
    assert "left out" not in report.report([str(tmp_path)])


# learning that diverges


class SpoiltOptions(METHODS["fedper"].Options):  # type: ignore[misc, name-defined]
    """What becomes not a number, of which client in which rounds."""

    name: Literal["spoilt"] = "spoilt"
    what: str = "backbone"
    client: int = 3
    first: int = 2
    last: int = 2


def spoilt(base: type) -> type:
    """The method, with a client whose learning diverges."""

    class Spoilt(base):  # type: ignore[misc]
        Options = SpoiltOptions

        def learn(self, turn: Turn) -> Tensor:
            losses = super().learn(turn)
            ours = self.options
            if turn.client == ours.client and ours.first <= turn.round <= ours.last:
                (losses if ours.what == "losses" else turn.model.buffers[ours.what])[-1] = math.nan
            return losses

    return Spoilt


SpoiltFedPer, SpoiltLocal = spoilt(METHODS["fedper"]), spoilt(METHODS["local"])
SPOILT = (
    *parity.COMMON,
    *parity.SMOOTH,
    "train.participation=1.0",
    "evaluate.every=1",
    "checkpoint.every=1",
    "checkpoint.keep=3",
    "evaluate.head_epochs=0",
)
KINDS = {
    # what is spoilt, and whether it would cross
    "SpoiltFedPer": ["backbone", "head", "losses"],
    "SpoiltLocal": ["backbone", "losses"],
}


def diverging(factory: str, *options: str) -> tuple[str, ...]:
    return (*SPOILT, f"method.factory=test_faults:{factory}", *options)


@pytest.fixture(scope="module", params=KINDS)
def spoiled(request, tmp_path_factory) -> tuple[str, dict[str, Path]]:
    """(method, what is spoilt and the number of ranks -> the run)."""
    runs = {}
    for size in (1, 3):
        folder = tmp_path_factory.mktemp("spoilt")
        options = diverging(request.param, f"method.what=[{','.join(KINDS[request.param])}]")
        federate(Path("auto"), size, *options, f"sweep.dir={folder}")
        runs |= {f"{path.name} {size}": path for path in folder.iterdir()}
    return request.param.removeprefix("Spoilt").lower(), runs


def test_the_round_is_as_if_the_client_had_not_been_drawn(spoiled):
    """Whatever of it diverged, from any number of ranks."""
    method, runs = spoiled
    assert len({summary(run)["state_sha256"] for run in runs.values()}) == 1
    config = load([*SPOILT, f"method.name={method}"], OPTIONS)
    own, inputs = parity.make_inputs(config)
    everybody = list(range(CLIENTS))
    inputs["cohorts"] = [everybody, [0, 1, 2, 4, 5, 6, 7], everybody]
    expected = reference.federate(own, **inputs)
    for run in runs.values():
        case = parity.Case(config=config, run=run, method=own, inputs=inputs, expected=expected, tests={})
        parity.test_shared_state(case)
        for client, private in enumerate(expected.private):
            assert parity.distance(parity.saved(case, f"client-{client:06d}.pt"), private) < parity.TOLERANCE
        assert_losses(run, expected)


def test_the_client_keeps_its_private_state_to_the_bit(spoiled):
    _, runs = spoiled
    for run in runs.values():
        one, two, three = (
            (run / f"checkpoints/round-00000{number}/client-000003.pt").read_bytes() for number in (1, 2, 3)
        )
        assert one == two != three


def test_the_record_names_it_and_does_not_test_it(spoiled):
    _, runs = spoiled
    for name, run in runs.items():
        lines = lines_of(run)
        assert [line["faults"]["diverged"] for line in lines] == [[], [3], []]
        assert lines[0]["bytes"]["federated_up"] == lines[1]["bytes"]["federated_up"]  # it has sent, all the same
        rows = list(csv.DictReader((run / "clients.csv").read_text().splitlines()))
        tested = [[int(r["client"]) for r in rows if (r["round"], r["stage"]) == (n, "trained")] for n in ("1", "2")]
        assert tested == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 4, 5, 6, 7]]
        ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        # who it was is asked in that round alone
        assert [entry["round"] for entry in ledger if entry["purpose"] == "diverged"] == [2], name


def said(folder: Path, *options: str) -> tuple[list[Any], str]:
    """What became of each of 3 ranks, and what the server said to its user."""
    outcome = run_ranks(3, overheard, list(diverging("SpoiltFedPer", f"run.dir={folder / 'run'}", *options)), folder)
    assert [(folder / f"{rank}.txt").read_text() for rank in (1, 2)] == ["", ""]
    return outcome, (folder / "0.txt").read_text()


def complaints(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("fedbsd_dist: ")]


def test_a_run_is_given_up_when_it_is_too_often_and_knows_so_after_a_resume(tmp_path):
    """Of a client that diverges in every round, the third is too many."""
    options = ("method.client=5", "method.first=1", "method.last=3")
    outcome, text = said(tmp_path, *options)
    assert outcome == [("exit", 2)] * 3
    assert text.count("client 5 diverged") == 2
    (message,) = complaints(text)
    assert "client 5 in round 1; client 5 in round 2; client 5 in round 3" in message
    assert "train.lr" in message
    assert [line["faults"]["diverged"] for line in lines_of(tmp_path / "run")] == [[5], [5]]
    outcome, text = said(tmp_path, *options, "run.resume=auto")
    assert outcome == [("exit", 2)] * 3
    assert "resumed      after round 2" in text
    assert complaints(text) == [message]
    # the numbers do not depend on what is too many, which may be thought over
    outcome, text = said(tmp_path, *options, "run.resume=auto", "fault.max_diverged_rounds=4")
    assert outcome == [None] * 3
    assert complaints(text) == []
    assert summary(tmp_path / "run")["faults"]["diverged"] == 3


class Waits(TorchDispatchMode):
    """Collects the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            self.found.append(function.name())
        return function(*arguments, **(options or {}))


def _upload(world: World) -> tuple[list[str], list[str]]:
    federation = build(world, "model.name=mlp", "method.name=apfl", "method.learn_alpha=true")
    turn = federation.receive(0, 1)
    with Waits() as waits:
        counts = federation.upload(turn, torch.ones(3))
    uploading = list(waits.found)
    with waits:
        assert bool(counts)
    return uploading, waits.found


def test_an_upload_does_not_wait_for_the_device():
    assert run_ranks(1, _upload) == [([], ["aten::_local_scalar_dense"])]


def test_only_the_rounds_before_count(tmp_path):
    """A checkpoint that does not verify is gone back behind, and what was recorded after it is done again."""
    diverged = ([3], [], [1, 2], [4])
    lines = [{"round": number, "faults": {"diverged": clients}} for number, clients in enumerate(diverged, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert diverged_before(3, tmp_path, meet()) == {1: [3], 3: [1, 2]}


@pytest.mark.parametrize(
    ("clients", "text"),
    [([7], "client 7"), ([3, 7], "clients 3, 7"), (range(12), "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more")],
)
def test_many_clients_are_named_in_one_line(clients, text):
    assert named(clients) == text
