"""A SLURM of two nodes on this machine: daemons of its own in a temporary folder, nothing installed, nothing left.

PYTHONPATH=. python tests/slurm_cluster.py bash     a shell in which sbatch and squeue mean this cluster

Jobs in partition `high` preempt those in `low`, which have GRACE seconds to end and are requeued.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ranks import free_port

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("127.0.0.1", "127.0.0.2")
"""Names that every machine can resolve, as those of nodes must be."""
GRACE = 30
PATIENCE = 30.0
"""Seconds in which a daemon starts, or ends."""
SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
NodeName={nodes[0]} NodeAddr={nodes[0]} Port={ports[1]} CPUs=8
NodeName={nodes[1]} NodeAddr={nodes[1]} Port={ports[2]} CPUs=8
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


class CannotStart(Exception):
    """A daemon did not come up; says which, and the end of what it logged."""


def missing() -> list[str]:
    """Programs of PROGRAMS that are not installed."""
    return [program for program in PROGRAMS if not shutil.which(program, path=_path())]


@contextmanager
def cluster() -> Iterator[None]:
    """In the block SLURM's commands mean this cluster; at its end jobs and daemons are ended.

    Raises CannotStart.
    """
    before = os.environ.get("SLURM_CONF")
    # short, for the name of a socket may have 107 characters
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        _configure(folder)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        stack.callback(_restore, before)
        munged = ["munged", "--foreground", "--force", "--num-threads=2"]
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munged += [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
        stack.enter_context(_daemon(folder, "munged", munged, ["munge", "-n", f"--socket={folder}/munge.socket"]))
        stack.enter_context(_daemon(folder, "slurmctld", ["slurmctld", "-D"], ["scontrol", "ping"], "is UP"))
        for node in NODES:
            ready = ["sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T"]
            stack.enter_context(_daemon(folder, f"slurmd-{node}", ["slurmd", "-D", "-N", node], ready, "idle"))
        stack.callback(_end_jobs)
        yield


def _configure(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(64))
    (folder / "munge.key").chmod(0o600)
    ports = [free_port() for _ in range(3)]
    host = socket.gethostname().partition(".")[0]
    settings = {"host": host, "ports": ports, "user": getpass.getuser(), "folder": folder, "nodes": NODES}
    (folder / "slurm.conf").write_text(SETTINGS.format(**settings, grace=GRACE))


def _restore(settings: str | None) -> None:
    if settings is None:
        os.environ.pop("SLURM_CONF")
    else:
        os.environ["SLURM_CONF"] = settings


@contextmanager
def _daemon(folder: Path, name: str, command: list[str], ready: list[str], word: str = "") -> Iterator[None]:
    """Running in the block, from when `ready` succeeds and prints `word`."""
    with (folder / f"{name}.out").open("wb") as out:
        program = shutil.which(command[0], path=_path()) or command[0]
        process = subprocess.Popen([program, *command[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        end = time.monotonic() + PATIENCE
        while not _answers(ready, word):
            if process.poll() is not None or time.monotonic() > end:
                logged = (folder / f"{name}.out").read_text(errors="replace").splitlines()[-20:]
                how = (
                    f"did not come up in {PATIENCE:g} s" if process.poll() is None else f"exited: {process.returncode}"
                )
                raise CannotStart("\n".join([f"{' '.join(command)} {how}. It logged last:", *logged]))
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(command: list[str], word: str) -> bool:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode == 0 and word in done.stdout


def _end_jobs() -> None:
    """Before the daemons, which would leave the jobs' processes behind."""
    end = time.monotonic() + PATIENCE
    subprocess.run(["scancel", f"--user={getpass.getuser()}"])
    while time.monotonic() < end and subprocess.run(["squeue", "-h"], capture_output=True).stdout:
        time.sleep(0.2)


def _path() -> str:
    """Daemons are in folders that are not on every user's PATH."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


if __name__ == "__main__":
    with cluster():
        sys.exit(subprocess.run(sys.argv[1:]).returncode)
