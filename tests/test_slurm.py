"""The batch scripts on a real SLURM of two nodes: jobs finish, and those that are stopped go on to the same bits."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from ranks import federate
from slurm_cluster import cluster, missing

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "train.rounds=3",
    "train.local_epochs=1",
    "train.batch_size=64",
    "train.participation=0.5",
    "model.name=mlp",
    "data.num_clients=4",
    "evaluate.every=0",
    "evaluate.head_epochs=1",
    "wire.sum=exact",
    "run.device=cpu",
)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
PATIENCE = 120.0
"""Seconds that anything takes at most."""

pytestmark = pytest.mark.skipif(
    bool(missing()),
    reason=f"not installed: {', '.join(missing())} (apt install slurm-wlm munge); the batch scripts are not tested",
)


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    with cluster():
        yield


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """While this file exists, rounds under `held` last a second."""
    path = tmp_path / "hold"
    path.touch()
    return path


def held(hold: Path) -> tuple[str, ...]:
    """Options of a run that lasts until `hold` is deleted, or else 20 s."""
    return (*OPTIONS, "train.rounds=20", "method.factory=held:Held", f"method.file={hold}")


def submit(script: str, log: Path, *arguments: str, ranks: str = "1") -> str:
    """The job's number. `arguments`: flags of sbatch, and options. `ranks`: a node; empty: what the script chooses."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    options = [argument for argument in arguments if not argument.startswith("-")]
    return sbatch(f"--output={log}", *flags, f"launch/{script}.sbatch", *options, RANKS_PER_NODE=ranks)


def sbatch(*arguments: str, folder: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", *arguments],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def show(job: str) -> dict[str, str]:
    """What SLURM knows of a job. One that is back in the queue starts after 3 s, not after two minutes: sooner the
    nodes would still refuse it.
    """
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", job], check=True, capture_output=True, text=True)
    facts = dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)
    if facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime":
        queued, begins = (datetime.fromisoformat(facts[time]) for time in ("SubmitTime", "EligibleTime"))
        if begins - datetime.now() > timedelta(seconds=10) and datetime.now() - queued > timedelta(seconds=3):
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    return facts


def wait_for(what: str, happened: Callable[[], object], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {PATIENCE:g} s. The job's log:\n{read(log)}")
        time.sleep(0.1)


def finish(job: str, log: Path) -> tuple[str, str]:
    """State and number of restarts of the job at its end."""
    wait_for(f"the end of job {job}", lambda: show(job)["JobState"] in ENDED, log)
    facts = show(job)
    return facts["JobState"], facts["Restarts"]


def near_its_time_limit(job: str) -> None:
    """The signal of --signal=B:USR2, now."""
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], check=True)


def read(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def rounds(run: Path) -> int:
    """Recorded by now."""
    return read(run / "metrics.jsonl").count("\n")


def state(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["state_sha256"]


def test_two_jobs_at_once_on_the_same_nodes_end_as_outside_slurm(tmp_path: Path) -> None:
    """Two nodes of two ranks each, two ways of having so many."""
    jobs = {}
    for seed, (ranks, flags) in enumerate([("2", []), ("", ["--cpus-per-task=2"])]):
        options = (f"run.dir={tmp_path}/run{seed}", *OPTIONS, f"seed={seed}")
        jobs[seed] = submit("slurm", tmp_path / f"log{seed}", "--nodes=2", *flags, *options, ranks=ranks)
    for seed, job in jobs.items():
        run, log = tmp_path / f"run{seed}", tmp_path / f"log{seed}"
        assert finish(job, log) == ("COMPLETED", "0"), read(log)
        federate(tmp_path / f"alone{seed}", 1, *OPTIONS, f"seed={seed}")
        assert state(run) == state(tmp_path / f"alone{seed}")
        assert json.loads((run / "summary.json").read_text())["world_size"] == 4
    times = [show(job) for job in jobs.values()]
    assert max(facts["StartTime"] for facts in times) < min(facts["EndTime"] for facts in times)


def test_a_job_preempted_and_then_near_its_time_limit_goes_on_to_the_same_bits(tmp_path: Path, hold: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = submit("slurm", log, "--nodes=2", "--hold", f"run.dir={run}", *held(hold))
    with socket.create_server(("127.0.0.1", 15000 + int(job))):  # somebody else has the port that would be the job's
        subprocess.run(["scontrol", "release", job], check=True)
        wait_for("round 2", lambda: rounds(run) >= 2, log)
    other = sbatch("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert finish(other, log) == ("COMPLETED", "0")
    assert show(job)["Restarts"] == "1", read(log)
    stopped = rounds(run)
    assert (run / "PREEMPTED").read_text() == f"after round {stopped}\n"
    wait_for("two rounds more", lambda: show(job) and rounds(run) >= stopped + 2, log)
    near_its_time_limit(job)
    wait_for("the stop", lambda: show(job)["Restarts"] == "2", log)
    hold.unlink()
    assert finish(job, log) == ("COMPLETED", "2"), read(log)
    assert read(log).count("resumed      after round") == 2
    assert not (run / "PREEMPTED").exists()
    federate(tmp_path / "alone", 1, *held(hold))
    assert state(run) == state(tmp_path / "alone")


def test_tasks_of_an_array_divide_a_sweep_and_go_on_each_by_itself(tmp_path: Path, hold: Path) -> None:
    """The last task is the one whose number is the whole array's as well."""
    options, folder = (*held(hold), "train.rounds=10"), tmp_path / "runs"
    array = submit(
        "slurm_sweep", tmp_path / "log%a", "--array=5-6", f"sweep.dir={tmp_path}/runs", *options, "seed=[0,1,2,3]"
    )
    first, last = f"{array}_5", f"{array}_6"
    wait_for("round 2", lambda: rounds(folder / "seed1") >= 2, tmp_path / "log6")
    assert show(last)["JobId"] == array
    near_its_time_limit(last)
    wait_for("the stop", lambda: show(last)["Restarts"] == "1", tmp_path / "log6")
    hold.unlink()
    assert finish(first, tmp_path / "log5") == ("COMPLETED", "0"), read(tmp_path / "log5")
    assert finish(last, tmp_path / "log6") == ("COMPLETED", "1"), read(tmp_path / "log6")
    for seed in range(4):
        assert f"seed{seed}" in read(tmp_path / f"log{5 + seed % 2}")
        federate(tmp_path / f"alone{seed}", 1, *options, f"seed={seed}")
        assert state(folder / f"seed{seed}") == state(tmp_path / f"alone{seed}")


def test_what_failed_or_saved_nothing_does_not_come_back(tmp_path: Path) -> None:
    failing = submit("slurm", tmp_path / "log0", f"run.dir={tmp_path}/run0", "train.lr=-1")
    stopped = submit("slurm", tmp_path / "log1", f"run.dir={tmp_path}/run1", *OPTIONS)
    steps = ["squeue", "--steps", "--noheader", f"--job={stopped}", "--format=%i"]
    started = f"{stopped}.0"
    wait_for("srun", lambda: started in subprocess.run(steps, capture_output=True, text=True).stdout, tmp_path / "log1")

    def ends() -> bool:
        """A signal that comes before the step's processes is lost."""
        over = show(stopped)["JobState"] in ENDED
        if not over:
            subprocess.run(["scancel", "--batch", "--signal=USR2", stopped])
            time.sleep(0.5)
        return over

    wait_for("the stop", ends, tmp_path / "log1")
    assert finish(stopped, tmp_path / "log1") == ("FAILED", "0"), read(tmp_path / "log1")
    assert "nothing was saved" in read(tmp_path / "log1")
    assert finish(failing, tmp_path / "log0") == ("FAILED", "0"), read(tmp_path / "log0")
    assert "fedbsd_dist: train.lr=-1" in read(tmp_path / "log0")


@pytest.mark.parametrize(
    ("script", "options", "hint"),
    [
        ("slurm", ["seed=1"], "run.dir=DIR"),
        ("slurm", ["run.dir=auto"], "run.dir=DIR"),
        ("slurm_sweep", ["seed=[0,1]", "run.dir=x"], "sweep.dir=DIR"),
        ("slurm_sweep", ["seed=[0,1]", "sweep.dir=x", "run.overwrite=true"], "run.overwrite=true"),
    ],
)
def test_what_could_not_go_on_is_refused(script: str, options: list[str], hint: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(script, log, *options)
    assert finish(job, log) == ("FAILED", "0")
    assert show(job)["ExitCode"] == "2:0"
    assert read(log).count("\n") == 1
    assert read(log).startswith("fedbsd_dist: ")
    assert hint in read(log)


@pytest.mark.parametrize(("copied", "hint"), [(False, "repository's root"), (True, "bash launch/setup.sh")])
def test_where_nothing_is_set_up_it_says_what_to_do(copied: bool, hint: str, tmp_path: Path) -> None:
    if copied:
        shutil.copytree(ROOT / "launch", tmp_path / "launch")
    log, script = tmp_path / "log", str(ROOT / "launch/slurm.sbatch")
    job = sbatch(f"--output={log}", script, "run.dir=x", folder=tmp_path, PATH="/usr/bin:/bin")
    assert finish(job, log) == ("FAILED", "0")
    assert show(job)["ExitCode"] == "2:0"
    assert hint in read(log).splitlines()[-1]
