"""The batch scripts' own functions, without a SLURM."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def saved(folder: Path) -> str:
    command = f'source launch/slurm.sh; saved "{folder}"'
    return subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_what_a_run_has_saved_is_seen_also_through_a_link(tmp_path: Path) -> None:
    """A mark that it was stopped, its end, and each checkpoint: of a run, and of the runs of a sweep."""
    run, link = tmp_path / "sweep/seed0", tmp_path / "link"
    link.symlink_to(tmp_path / "sweep")
    (run / "checkpoints/round-000003").mkdir(parents=True)
    (run / "checkpoints/round-000003/shared.pt").touch()
    assert saved(run) == saved(link) == ""
    seen = ""
    for name in ("checkpoints/round-000003/manifest.json", "PREEMPTED", "summary.json"):
        (run / name).write_text(name)
        assert saved(run).count("\n") == saved(link).count("\n") == seen.count("\n") + 1
        seen = saved(run)
        assert name in seen
