"""What the README shows runs as it stands there."""

import json
import re
from pathlib import Path

import pytest
import torch
from benchmarks.readme_tables import COMMAND, words
from ranks import federate
from test_methods import SHORT

from fedbsd_dist.record import charts
from fedbsd_dist.report import report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(containing: str) -> str:
    """The one block of Python in which this stands."""
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.S) if containing in code)
    return found


def test_the_method_of_ones_own(tmp_path: Path, monkeypatch) -> None:
    code = block("(Method[")
    assert 30 <= len(code.splitlines()) <= 50
    (tmp_path / "readme_method.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("method.factory=readme_method:SmoothHead", "train.participation=1.0")
    states = {}
    for keep in (0.0, 0.5):
        path = tmp_path / f"run{keep}"
        federate(path, 1, f"run.dir={path}", *SHORT, *options, f"method.keep={keep}")
        facts = json.loads((path / "summary.json").read_text())
        assert facts["method"] == "smooth_head"
        assert facts["accuracy"]["trained"]["mean"] > 0.3
        assert "readme_method:SmoothHead" in (path / "config.yaml").read_text()
        states[keep] = torch.load(path / "checkpoints/round-000003/client-000000.pt", weights_only=True)
    assert states[0.0].keys() == {"head", "mean_head"}
    assert torch.equal(states[0.0]["head"], states[0.0]["mean_head"])
    # the mean lags behind, and does not change what is learned
    assert torch.equal(states[0.5]["head"], states[0.0]["head"])
    assert not torch.equal(states[0.5]["head"], states[0.5]["mean_head"])


@pytest.mark.parametrize("path", ["README.md", "configs/results/README.md"])
def test_tables_of_kept_records_are_those_that_their_command_makes(path, tmp_path, monkeypatch) -> None:
    """Of every such command, all rows of the tables that follow it before the next heading or block."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(charts, "_svg", lambda *drawing: b"")  # takes long, and no table needs it
    found = re.findall(COMMAND, Path(path).read_text(), re.S)
    assert found
    for arguments, text in found:
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) > 4, arguments
        report([*words(arguments), f"--out={tmp_path}"])
        assert {*rows} <= {*(tmp_path / "report.md").read_text().splitlines()}, arguments
