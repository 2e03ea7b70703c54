"""Several runs in one launch: which they are, what they are called, and that each is what it would be alone."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from ranks import federate, run_ranks
from test_interface import alone, tree

from fedbsd_dist.commandline import load
from fedbsd_dist.errors import UserError
from fedbsd_dist.main import run
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.sweep import LONGEST, expand, part_of, placed
from fedbsd_dist.wire.world import World

SHORT = (
    "train.rounds=2",
    "train.local_epochs=1",
    "train.batch_size=128",
    "train.participation=0.5",
    "model.name=mlp",
    "data.num_clients=4",
    "evaluate.head_epochs=1",
    "wire.sum=exact",
)
AXES = ("method.name=[fedavg,fedbsd]", "seed=[0,1]")
NAMES = ["fedavg_seed0", "fedavg_seed1", "fedbsd_seed0", "fedbsd_seed1"]


def names(*arguments: str) -> list[str]:
    return [point.name for point in expand(arguments, OPTIONS)]


def state(path: Path) -> str:
    return json.loads((path / "summary.json").read_text())["state_sha256"]


# which runs


def test_lists_are_multiplied_and_the_last_changes_fastest():
    points = expand([*AXES, "data.alpha=[0.1,0.5]", "train.lr=0.03"], OPTIONS)
    assert [(p.config.method.name, p.config.seed, p.config.data.alpha) for p in points] == [
        (method, seed, alpha) for method in ("fedavg", "fedbsd") for seed in (0, 1) for alpha in (0.1, 0.5)
    ]
    assert points[0].name == "fedavg_alpha0.1_seed0"
    assert {point.config.train.lr for point in points} == {0.03}
    assert len({point.name for point in points}) == 8


def test_without_a_list_there_is_one_run_without_a_name():
    (point,) = expand(["seed=3"], OPTIONS)
    assert (point.name, point.config) == ("", load(["seed=3"], OPTIONS))


def test_a_method_may_come_with_options_of_its_own():
    points = expand(["method=[fedavg,{name: fedprox, mu: 0.1},{name: fedprox, mu: 1.0}]"], OPTIONS)
    assert [point.name for point in points] == ["fedavg", "fedprox-mu0.1", "fedprox-mu1.0"]
    assert points[2].config.method.mu == 1.0


def test_lists_may_stand_in_a_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("seed: [4, 5]\nmethod:\n  - fedavg\n  - {name: ditto, lam: 2.0}\n")
    assert names(str(tmp_path / "mine.yaml"), "train.lr=[0.1]") == [
        f"{method}_lr0.1_seed{seed}" for seed in (4, 5) for method in ("fedavg", "ditto-lam2.0")
    ]
    assert names(str(tmp_path / "mine.yaml"), "seed=1") == ["fedavg", "ditto-lam2.0"]
    (alone,) = expand([str(tmp_path / "mine.yaml"), "seed=1", "method.name=moon"], OPTIONS)
    assert (alone.name, alone.config.method.name) == ("", "moon")


def test_other_options_may_go_with_a_method_and_before_those_of_all():
    points = expand(
        ["method=[fedavg,{name: ditto, lam: 2.0, train.lr: 0.5, model.name: mlp}]", "train.lr=0.3"], OPTIONS
    )
    assert [(p.name, p.config.train.lr, p.config.model.name) for p in points] == [
        ("fedavg", 0.3, "cnn"),
        ("ditto-lam2.0-train.lr0.5-model.namemlp", 0.5, "mlp"),
    ]
    assert points[1].config.method.lam == 2.0


def test_a_list_that_goes_with_a_method_is_a_grid_of_its_own():
    points = expand(["method=[{name: ditto, lam: [0.1,1.0], train.lr: [0.2,0.3]},fedavg]"], OPTIONS)
    assert [(p.config.method.name, getattr(p.config.method, "lam", None), p.config.train.lr) for p in points] == [
        *(("ditto", lam, lr) for lam in (0.1, 1.0) for lr in (0.2, 0.3)),
        ("fedavg", None, 0.02),
    ]
    assert len({point.name for point in points}) == 5


def test_an_option_that_is_a_list_is_swept_by_a_list_of_lists():
    assert names("data.classes=[zero,one]") == [""]
    points = expand(["data.classes=[[zero,one],[two]]"], OPTIONS)
    assert [point.config.data.classes for point in points] == [["zero", "one"], ["two"]]


def test_names_are_safe_and_no_longer_than_a_file_system_takes():
    (odd,) = names("model.factory=['my/../mod:f']")
    assert "/" not in odd
    long = names(f"model.factory=['{'x' * 300}:a','{'x' * 300}:b']")
    assert len({*long}) == 2
    assert max(map(len, long)) <= LONGEST + 9


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_slices_have_every_run_once(parts: int):
    both = [*AXES, "train.lr=[0.1,0.2]"]
    sliced = [
        point.name
        for part in range(parts)
        for point in part_of(
            expand([*AXES, "train.lr=[0.1,0.2]", f"sweep.slice={part}/{parts}", "sweep.dir=x"], OPTIONS)
        )
    ]
    assert sorted(sliced) == sorted(names(*both))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["seed=[]"], "seed=[]: an empty list"),
        (["seed=[0,0]"], "two runs of this sweep would be called seed0"),
        (["method=[{},fedavg]"], "a run of this sweep has no name"),
        (["seed=[0,-1]"], "the run seed-1 of this sweep: seed=-1"),
        (["method.name=[fedavg,fedsgd]"], "the run fedsgd of this sweep: method.name=fedsgd"),
        (["method.name=[fedavg,fedprox]", "method.mu=0.1"], "the run fedavg of this sweep: method.mu"),
        (["method=[{name: ditto, lam: []}]"], "method.lam=[]: an empty list"),
        (["method=[{name: ditto, train.lr: 0.1}]", "train.lr=[0.2,0.3]"], "train.lr is given a list, and goes with"),
        (["method=[{name: ditto, run.threads: 2}]"], "run.threads goes with a method, but is the same for all runs"),
        (["method=[{name: ditto, seed.x: 2}]", "seed=1"], "seed is no section"),
        (["method=[{name: ditto, train.llr: 2}]"], "train.llr: unknown option. Did you mean train.lr?"),
        (["run.threads=[1,2]"], "the same for all runs"),
        (["train=[1,2]"], "train is a section"),
        (["seed=[0,1]", "run.dir=x"], "Set sweep.dir instead"),
        (["seed=[0,1]", "sweep.slice=2/2"], "so 0/2 to 1/2"),
        (["seed=[0,1]", "sweep.slice=half"], "sweep.slice"),
        (["seed=[0,1]", "sweep.slice=0/2"], "sweep.dir=FOLDER"),
        (["sweep.dir=x"], "nothing to sweep"),
    ],
)
def test_what_cannot_be_a_sweep(arguments: list[str], hint: str, tmp_path: Path, monkeypatch, capsys):
    with pytest.raises(UserError) as refused:
        expand(arguments, OPTIONS)
    assert hint in str(refused.value)
    monkeypatch.chdir(tmp_path)
    assert alone(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert tree(tmp_path) == {}


# what they do


def _launch(world: World, arguments: list[str], logs: str) -> None:
    for descriptor in (1, 2):
        os.dup2(os.open(f"{logs}/{descriptor}-{world.rank}", os.O_WRONLY | os.O_CREAT), descriptor)
    run(arguments, world)


def launch(folder: Path, size: int, *arguments: str) -> tuple[int, str, str]:
    """(exit code, what was printed, what was printed to standard error), of all ranks."""
    with tempfile.TemporaryDirectory() as logs:
        codes = {code or 0 for code in run_ranks(size, _launch, [f"sweep.dir={folder}", *SHORT, *arguments], logs)}
        texts = ["".join(path.read_text() for path in sorted(Path(logs).glob(f"{number}-*"))) for number in (1, 2)]
    (code,) = codes
    return (code if code == 0 else code[1]), *texts


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The folder of a sweep of four runs on two ranks; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    assert launch(folder, 2, *AXES)[0] == 0
    return folder


def test_every_run_has_the_bits_that_it_has_alone(swept: Path, tmp_path: Path):
    assert sorted(path.name for path in swept.iterdir()) == NAMES
    for name in NAMES:
        method, seed = name.split("_seed")
        federate(tmp_path / name, 1, *SHORT, f"method.name={method}", f"seed={seed}")
        assert state(tmp_path / name) == state(swept / name)
    assert len({state(swept / name) for name in NAMES}) == 4


def test_a_runs_configuration_is_that_run_alone(swept: Path):
    (point, *_) = expand([*SHORT, *AXES, f"sweep.dir={swept}"], OPTIONS)
    assert load([str(swept / NAMES[0] / "config.yaml")], OPTIONS) == placed(point, str(swept))


def test_finished_runs_are_skipped_and_slices_share_a_table(tmp_path: Path):
    _, out, _ = launch(tmp_path, 1, *AXES, "sweep.slice=1/2")
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAMES[1], NAMES[3]]
    assert "run 2 of 2: fedbsd_seed1" in out
    assert "2 of the 4 runs of this sweep are not finished" in out
    before = tree(tmp_path)
    _, out, _ = launch(tmp_path, 1, *AXES)
    assert out.count("finished already") == 2
    assert {name: after for name, after in tree(tmp_path).items() if name in before} == before
    table = out[out.index("Accuracy in percent") :]
    assert {line.split()[0] for line in table.splitlines()[3:5]} == {"fedavg", "fedbsd"}
    assert "fedavg - fedbsd" in table
    assert "not finished" not in table


def test_overwriting_makes_finished_runs_again(tmp_path: Path):
    launch(tmp_path, 1, "seed=[0]")
    before = (tmp_path / "seed0/summary.json").stat().st_mtime_ns
    assert launch(tmp_path, 1, "seed=[0]", "run.overwrite=true")[0] == 0
    assert (tmp_path / "seed0/summary.json").stat().st_mtime_ns > before


def test_check_lists_the_runs_and_leaves_nothing(swept: Path, tmp_path: Path):
    before = tree(swept)
    _, out, _ = launch(swept, 1, *AXES, "data.alpha=[0.1]", "--check")
    assert "bytes a round" in out
    listed = [f"  to do     {name.replace('_', '_alpha0.1_')}" for name in NAMES]
    assert out.splitlines()[-4:] == listed
    assert launch(swept, 1, *AXES, "--check")[1].count("  finished  ") == 4
    assert tree(swept) == before


def test_what_is_wrong_with_the_last_run_is_told_before_the_first(tmp_path: Path):
    code, out, err = launch(tmp_path, 2, "data.num_clients=[4,100000]")
    assert (code, out) == (2, "")
    assert "data.num_clients" in err
    assert tree(tmp_path) == {}


def test_a_run_that_diverges_does_not_take_the_others_with_it(tmp_path: Path):
    code, out, err = launch(tmp_path, 2, "train.lr=[1e30,0.01]", "fault.max_diverged_rounds=1")
    assert code == 2
    lines = err.splitlines()
    assert [line.count("fedbsd_dist:") for line in lines] == [1, 1]
    assert "lr1e+30: round 1" in lines[0]
    assert "1 of 2 runs failed: lr1e+30" in lines[1]
    assert (tmp_path / "lr0.01/summary.json").exists()
    assert not (tmp_path / "lr1e+30/summary.json").exists()
    assert "1 of the 2 runs of this sweep are not finished" in out


def test_a_sweep_goes_on_in_the_middle_of_a_run(tmp_path: Path):
    """A run of which rounds 1 and 2 of 4 are there, as a killed launch leaves them."""
    longer = ("train.rounds=4", "checkpoint.every=2", "evaluate.every=0")
    launch(tmp_path / "whole", 1, "seed=[0,1]", *longer)
    launch(tmp_path / "killed", 1, "seed=[0]", *longer, "train.rounds=2")
    (tmp_path / "killed/seed0/summary.json").unlink()
    launch(tmp_path / "killed", 1, "seed=[0,1]", *longer)
    for name in ("seed0", "seed1"):
        assert state(tmp_path / "killed" / name) == state(tmp_path / "whole" / name)
