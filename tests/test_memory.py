"""Memory: counted to the byte where it can be, and a run that does not fit is refused before it writes anything."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from test_interface import SHORT, alone
from torch.nn import functional as F

from fedbsd_dist import host_memory, rehearsal, trials
from fedbsd_dist.commandline import load
from fedbsd_dist.errors import UserError
from fedbsd_dist.host_memory import Place, available_bytes, places
from fedbsd_dist.main import run
from fedbsd_dist.memory import Memory
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import Plan, make_plan
from fedbsd_dist.rehearsal import Live
from fedbsd_dist.wire.world import World, meet

MB = 10**6


def plan_for(size: int, *options: str) -> Plan:
    return make_plan(load([*SHORT, "run.device=cpu", *options], OPTIONS), meet().imagined(size))


def memory_for(size: int, *options: str) -> Memory:
    found = plan_for(size, *options).memory
    assert isinstance(found, Memory)
    return found


def test_live_bytes_are_counted_by_hand() -> None:
    """5 samples of 3 numbers -> 4 hidden -> relu -> 2 logits, of 4 bytes each; backwards too."""
    x, first, second = torch.ones(5, 3), torch.ones(3, 4, requires_grad=True), torch.ones(4, 2, requires_grad=True)
    live = Live([x, first, second])
    with live:
        hidden = x @ first
        active = F.relu(hidden)
        del hidden  # relu keeps what it gave, not what it got
        logits = active @ second
        loss = logits.sum()
        assert live.series[:2] == [80, 160]
        assert live.series[-2:] == [80 + 40, 80 + 40 + 4]
        del active, logits  # of these, the second product keeps the first
        first.t()  # a view of what was there before
        assert live.series[-1] == 80 + 4
        gradients = torch.autograd.grad(loss, [first, second])
        del loss
        torch.zeros(1)
    # of the loss a gradient of 4 bytes, spread without copies; then those of the weights, and of the hidden layer
    assert max(live.series) >= 80 + 4 + 4 * 12 + 4 * 8
    assert live.series[-1] == 4 * 12 + 4 * 8 + 4
    assert [gradient.nbytes for gradient in gradients] == [48, 32]


@pytest.mark.parametrize("method", ["fedbsd", "ditto", "scaffold", "per_fedavg"])
def test_a_rehearsal_on_few_samples_tells_of_more(method: str) -> None:
    plan = plan_for(1, f"method.name={method}", "model.name=cnn")
    facts = plan.config, plan.model, (1, 16, 16), 10
    before = plan.model.digest
    found = rehearsal.rehearse(*facts)
    (learning, testing), copies, features = rehearsal._turn(*facts, 40)
    assert max(line.at(40) for line in found.learning) == pytest.approx(max(learning), abs=1)
    assert max(line.at(40) for line in found.testing) == pytest.approx(max(testing), abs=1)
    assert (found.copies, found.features) == (copies, features)
    assert max(line.a_sample for line in found.learning) > 4 * 32 * 12 * 12  # the first layer's output at least
    assert plan.model.digest == before


def test_activations_of_a_second_step_lie_beside_the_momentum_of_the_first() -> None:
    fixed = []
    for momentum in (0.0, 0.5):
        plan = plan_for(1, "method.name=fedavg", f"train.momentum={momentum}")
        lines = rehearsal.rehearse(plan.config, plan.model, (1, 16, 16), 10).learning
        fixed.append(max(lines, key=lambda line: line.at(10**5)).fixed)
    assert fixed[1] - fixed[0] == plan.model_bytes


def test_parts_are_those_that_can_be_counted_by_hand() -> None:
    found = memory_for(3, "method.name=ditto", "train.participation=1.0", "checkpoint.every=1")
    parameters = 256 * 512 + 512 + 512 * 256 + 256 + 256 * 64 + 64 + 64 * 10 + 10
    assert found.private == found.upload == 4 * parameters
    assert found.live == 2 * found.private  # the personal model beside it
    assert found.rehearsal.copies == 2 * found.private  # the shared state, and where all began
    assert found.rehearsal.features == 4 * 64
    server, _ = found.of(0)
    host, device = found.of(1)
    assert not device
    assert host["private state"] == len(found.hosted[1]) * found.private
    assert host["samples"] == sum(found.sizes[client] for client in found.hosted[1]) * (256 + 8)
    assert server["private state"] == server["samples"] == server["activations"] == 0
    assert host["checkpoint"] == (len(found.hosted[1]) + 1) * found.private
    # gradients and momentum of the whole model at least, the channel's buffer, and what was counted above
    assert host["model"] >= found.live + found.rehearsal.copies + found.payload + 2 * found.private


def test_options_take_what_they_say() -> None:
    def parts(*options: str) -> dict[str, float]:
        return memory_for(1, "method.name=ditto", "train.participation=1.0", *options).of(0)[0]

    assert "private state" not in parts("client.store=mmap")
    largest = max(plan_for(1).partition.sizes)
    assert parts("data.device_memory=0.0")["samples"] == pytest.approx(largest * 264)
    assert parts("checkpoint.every=0")["checkpoint"] == 0
    assert parts("train.batch_size=128")["activations"] > parts("train.batch_size=64")["activations"] > 0
    some = memory_for(1, "method.name=ditto", "train.participation=0.5", "train.rounds=2")
    assert some.of(0)[0]["private state"] == 3 * some.private  # of 4 clients, those drawn once in two rounds
    often = memory_for(1, "method.name=ditto", "train.participation=0.5", "train.rounds=2", "checkpoint.every=1")
    assert often.of(0)[0]["checkpoint"] == (2 + 2) * some.private  # of two, the shared state, and a file of it


def test_the_text_names_server_and_fullest_rank(capsys) -> None:
    assert alone(*SHORT, "--check=3", "client.store=mmap", "method.name=local") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory"))
    assert "MB on rank 0 (runtime" in row
    assert "; private state " in row


def test_what_is_there_is_shared_by_the_ranks_of_a_host() -> None:
    found = places(["a", "a", "b", "a"], [0] * 4, [[50, 7], [40, 7], [90, 7], [60, 7]])
    assert [(place.name, list(place.ranks), place.room) for place in found] == [
        ("host a", [0, 1, 3], 40 + 21),
        ("host b", [2], 97),
    ]
    imagined = places([""] * 3, [0] * 3, [[50, 7], [], []])
    assert [(place.name, list(place.ranks), place.room) for place in imagined] == [("this host", [0, 1, 2], 57)]
    shared = places(["a"] * 3, [2] * 3, [[9, 1, 30, 5], [9, 1, 20, 5], [9, 1, 25, 5]])
    assert [(place.name, list(place.ranks), place.room, place.is_device) for place in shared[1:]] == [
        ("GPU 0 of host a", [0, 2], 25 + 10, True),
        ("GPU 1 of host a", [1], 25, True),
    ]


def test_too_little_is_refused_with_what_helps_most_first() -> None:
    found = memory_for(2, "method.name=ditto", "train.participation=1.0", "data.num_clients=450", "data.min_samples=1")
    need = sum(sum(found.of(rank)[0].values()) for rank in range(2))
    with pytest.raises(UserError, match=r"Use client\.store=mmap \(\d+\.\d GB less\), fewer ranks there \(") as refusal:
        found.check([Place(name="host a", ranks=[0, 1], room=0.85 * need)])
    assert "the memory of host a: 2 ranks will take" in str(refusal.value)
    assert "private state" in str(refusal.value)
    assert "or a smaller model." in str(refusal.value)
    assert found.check([Place(name="host a", ranks=[0, 1], room=1.2 * need)]) == ""
    for share in (0.95, 1.05):  # it may be so, and may not
        assert "may just do" in found.check([Place(name="host a", ranks=[0, 1], room=share * need)])


@pytest.mark.parametrize("flag", ["--check", "--check=4", ""])
def test_a_refusal_is_one_message_and_writes_nothing(flag: str, tmp_path, capsys, monkeypatch) -> None:
    held = host_memory.own_bytes()
    monkeypatch.setattr(host_memory, "available_bytes", lambda: -0.5 * held)
    assert alone(*SHORT, *filter(None, [flag]), f"run.dir={tmp_path / 'run'}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedbsd_dist: the memory of ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def _starved(world: World, arguments: list[str]) -> None:
    host_memory.available_bytes = lambda: -10.0 * MB if world.rank else 10.0**12  # type: ignore[assignment]
    host_memory.own_bytes = lambda: 1.0 * MB  # type: ignore[assignment]
    run(arguments, world)


def test_every_rank_leaves_where_one_sees_too_little(tmp_path) -> None:
    assert run_ranks(2, _starved, [*SHORT, f"run.dir={tmp_path / 'run'}"]) == [("exit", 2)] * 2
    assert not list(tmp_path.iterdir())


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("", {}, 1024 * 5000),
        ("0::/job/step\n", {"job/memory.max": "900000", "job/memory.current": "500000"}, 900000 - 500000 + 70000),
        ("0::/job/step\n", {"job/memory.max": "max", "job/memory.current": "500000"}, 1024 * 5000),
        (
            "4:memory:/job\n3:cpu:/\n",
            {"memory/job/memory.limit_in_bytes": "900000", "memory/job/memory.usage_in_bytes": "850000"},
            900000 - 850000 + 60000,
        ),
        ("4:memory:/elsewhere\n", {}, 1024 * 5000),
    ],
    ids=["no groups", "version 2, of a parent", "no limit", "version 1", "not to be seen"],
)
def test_the_smallest_limit_counts(lines: str, files: dict[str, str], expected: float, tmp_path) -> None:
    proc = _tree(tmp_path / "proc", {"meminfo": "MemTotal: 9999 kB\nMemAvailable: 5000 kB\n", "self/cgroup": lines})
    statistics = "inactive_file 70000\ntotal_inactive_file 60000\n"
    groups = dict.fromkeys(("job/memory.stat", "memory/job/memory.stat"), statistics)
    assert available_bytes(proc, _tree(tmp_path / "groups", {**groups, **files})) == expected


@pytest.mark.parametrize("options", [["method.name=fedbsd"], ["method.name=fedrep"], ["train.together=2"]])
def test_every_step_comes_again_where_it_is_tried_whether_steps_can_be_captured(options, monkeypatch) -> None:
    """The second of a shape is what would be captured on a GPU, which this is not."""
    shapes: list[Counter[object]] = []

    def counted(step, *_: object, **__: object):
        seen: Counter[object] = Counter()
        shapes.append(seen)

        def one(*batch: torch.Tensor) -> torch.Tensor:
            seen[tuple(tensor.shape for tensor in batch)] += 1
            return step(*batch)

        return one

    monkeypatch.setattr("fedbsd_dist.client.captured", counted)
    monkeypatch.setattr("fedbsd_dist.together.captured", counted)
    plan = plan_for(1, *options)
    shapes.clear()
    before = plan.model.digest
    trials.check_captured(plan.config, plan.model, (1, 16, 16), 10)
    assert shapes
    assert all(number >= 2 for seen in shapes for number in seen.values())
    assert plan.model.digest == before


@pytest.mark.parametrize("error", [UserError("cannot be captured"), ValueError("needs more")])
def test_only_what_cannot_be_captured_is_refused(error: Exception, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    plan = plan_for(1, "method.name=fedbsd")
    monkeypatch.setattr("fedbsd_dist.client.captured", fails)
    refused = pytest.raises(UserError, match="captured") if isinstance(error, UserError) else nullcontext()
    with refused:
        trials.check_captured(plan.config, plan.model, (1, 16, 16), 10)


def test_a_method_that_cannot_be_rehearsed_is_run_all_the_same(monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("needs more")

    monkeypatch.setattr("fedbsd_dist.plan.rehearse", fails)
    plan = plan_for(2)
    assert "not known: learning from a few black images failed (ValueError: needs more)" in plan.text
    assert plan.check_memory(meet().imagined(2), ["[1, 1]"]) == ""
