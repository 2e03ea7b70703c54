"""Runs side by side: numbers against those worked out by hand, a page that needs nothing else, wrong input."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ranks import federate

from fedbsd_dist import report
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import compare, costs
from fedbsd_dist.record.runs import Run, find, load

ACCURACY = {"fedavg": (0.90, 0.94, 0.89), "fedbsd": (0.93, 0.92, 0.97), "scaffold": (0.80,)}
"""Method -> accuracy `head_tuned` by seed."""


def make_run(path: Path, method: str, seed: int, accuracy: float, alpha: float = 0.1, **more: object) -> Path:
    """A run of 4 rounds and 2 clients, evaluated at rounds 2 and 4, written by hand."""
    path.mkdir(parents=True)
    stages = {
        stage: {"mean": accuracy - less, "weighted_mean": 0.5, "std": 0.1, "worst_10pct": accuracy - 0.2}
        for stage, less in (("received", 0.02), ("trained", 0.01), ("head_tuned", 0.0))
    }
    lines = [
        {
            "round": number,
            "accuracy": {"received": {"mean": accuracy - 0.1}} if number == 2 else stages if number == 4 else {},
            "bytes": {"federated_up": 1000, "federated_down": 500},
            "seconds": {"training": 2.0, "communication": 0.5, "evaluation": 9.0},
        }
        for number in (1, 2, 3, 4)
    ]
    entries = [
        {"purpose": "aggregate", "elements_by_group": {"backbone": 90, "control_backbone": 60, "scalars": 7}},
        {"purpose": "evaluation", "elements_by_group": {"scalars": 100}},
    ]
    rows = ["round,stage,client,num_train,num_test,accuracy,loss"]
    rows += [
        f"{number},{stage},{client},9,9,{accuracy - client / 10},1"
        for number in (2, 4)
        for stage in stages
        for client in (0, 1)
    ]
    summary = {
        "method": method,
        "seed": seed,
        "rounds": 4,
        "accuracy": stages,
        "bytes": {"federated_up": 4000, "federated_down": 2000},
        "parameters": {"backbone": 90, "head": 10},
        **more,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))
    (path / "clients.csv").write_text("\n".join(rows) + "\n")
    (path / "config.yaml").write_text(
        f"seed: {seed}\nrun:\n  dir: {path.name}\nmethod:\n  name: {method}\n"
        f"data:\n  alpha: {alpha}\n  source: digits\n"
    )
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A sweep of three methods; one has one seed only."""
    for method, values in ACCURACY.items():
        for seed, accuracy in enumerate(values):
            make_run(tmp_path / f"sweep/{method}_{seed}", method, seed, accuracy)
    return tmp_path / "sweep"


def test_mean_and_deviation_over_seeds_ranked_by_the_step_that_is_alike(runs: Path):
    groups = compare.ranked(load(find([runs])))
    heading, *rows = compare.accuracies(groups)
    assert heading == ["", "received", "trained", "head_tuned", "worst 10 %", "seeds", "sent, received"]
    assert [row[0] for row in rows] == ["fedbsd", "fedavg", "scaffold"]
    deviation = 100 * np.std(ACCURACY["fedbsd"], ddof=1)
    assert rows[0][3] == f"94.00 ± {deviation:.2f}" == "94.00 ± 2.65"
    assert rows[0][4] == "74.00 ± 2.65"
    assert rows[2][1:] == ["78.00", "79.00", "80.00", "60.00", "1", "6.0 kB"]  # one seed has no deviation


def test_differences_are_paired_by_seed(runs: Path):
    heading, *rows = compare.differences(compare.ranked(load(find([runs]))))
    assert [row[0] for row in rows] == ["fedavg", "scaffold"]
    # by hand: -3, +2, -8; mean -3, deviation 5; t of 2 degrees of freedom at 97.5 % is 4.303
    assert rows[0][heading.index("head_tuned")] == f"-3.00 ± {4.3027 * 5 / 3**0.5:.2f}"
    assert rows[1][heading.index("head_tuned")] == "-13.00"
    assert [row[-1] for row in rows] == ["3", "1"]
    assert compare.half_width([1.0, 3.0]) == pytest.approx(12.706, abs=1e-3)  # 12.706 * sqrt(2) / sqrt(2)


def test_a_difference_is_from_the_baseline_of_the_same_settings(tmp_path: Path):
    for alpha, ours, base in ((0.1, 0.9, 0.8), (0.5, 0.7, 0.75)):
        make_run(tmp_path / f"r/a{alpha}", "fedavg", 0, ours, alpha)
        make_run(tmp_path / f"r/b{alpha}", "fedbsd", 0, base, alpha)
    rows = compare.differences(load(find([tmp_path / "r"])))
    assert {row[0]: row[3] for row in rows[1:]} == {"fedavg alpha=0.1": "+10.00", "fedavg alpha=0.5": "-5.00"}


def test_last_mean_and_best_are_shown_where_runs_have_them(runs: Path):
    assert len(compare.selections(load(find([runs])))) == 1
    more = {
        "accuracy_last_rounds": {"rounds": 2, "evaluations": 1, "received": {"mean": 0.77}},
        "best": {"round": 2, "validation": 0.9, "stage": "received", "received": {"mean": 0.66}},
    }
    make_run(runs / "x", "ditto", 0, 0.5, **more)
    rows = {row[0]: row[1:] for row in compare.selections(load(find([runs])))}
    assert rows["ditto"] == ["48.00", "77.00", "66.00"]


def test_curves_and_clients_are_read_from_the_record(runs: Path):
    run = Run(runs / "fedbsd_0")
    assert run.curve("rounds") == ([2, 4], [pytest.approx(0.83), pytest.approx(0.91)])
    assert run.curve("bytes")[0] == [3000, 6000]
    assert run.curve("seconds")[0] == [5, 10]
    assert run.clients("head_tuned") == [pytest.approx(0.93), pytest.approx(0.83)]  # of the last evaluation alone


def test_what_crosses_is_the_ledgers(runs: Path):
    (row,) = [row for row in costs.crossing(load(find([runs]))) if row[0] == "fedbsd"]
    assert row[1:] == ["backbone 90 + control_backbone 60", "600 B", "150.0 %", "6.0 kB"]


def test_costs_of_a_target(runs: Path):
    rows = {row[0]: row[1:] for row in costs.to_target(load(find([runs])), 0.84)}
    # received: fedbsd .83 .82 .87, then .91 .90 .95; fedavg .80 .84 .79, then .88 .92 .87
    assert rows["fedbsd"] == ["3.3", "5.0 kB", "3 of 3"]
    assert rows["fedavg"][2] == "3 of 3"
    assert rows["scaffold"] == ["not reached", "", "0 of 1"]
    assert costs.default_target(load(find([runs]))) == round(0.95 * 0.92, 2)


class Resources(HTMLParser):
    """What a page asks for, and the elements it has."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]


def test_the_page_needs_nothing_else_and_escapes_what_runs_say(runs: Path, tmp_path: Path):
    evil = "<script>alert(1)</script>|$x_1$"
    make_run(runs / "evil", evil, 0, 0.5)
    told = report.report([str(runs), f"--out={tmp_path / 'out'}", "--target=0.85"])
    assert str(tmp_path / "out/report.html") in told
    text = (tmp_path / "out/report.html").read_text()
    page = Resources()
    page.feed(text)
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert "@media (prefers-color-scheme: dark)" in text
    markdown = (tmp_path / "out/report.md").read_text()
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")]
    assert len(set(columns[:6])) == 1  # a bar in a name does not start another column
    assert "To 85 %" in markdown


def test_a_folder_of_runs_gets_the_report_itself(runs: Path, monkeypatch, tmp_path):
    report.report([str(runs)])
    assert (runs / "report.html").exists()
    monkeypatch.chdir(tmp_path)
    report.report([str(runs / "fedavg_0"), str(runs / "fedbsd_0")])
    assert (tmp_path / "report/report.md").exists()
    assert {path.name for path in (runs / "fedavg_0").iterdir()} == {
        "summary.json", "metrics.jsonl", "ledger.jsonl", "clients.csv", "config.yaml",
    }  # fmt: skip


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here to look at the page")
def test_pictures_render_and_follow_the_colour_scheme(runs: Path, tmp_path: Path):
    from PIL import Image

    report.report([str(runs)])
    means = []
    for scheme in (0, 1):
        shot = tmp_path / f"{scheme}.png"
        chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,2600"]
        told = [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}"]
        page = (runs / "report.html").as_uri()
        subprocess.run([*chromium, *told, page], capture_output=True, timeout=120, check=True)
        means.append(float(np.asarray(Image.open(shot).convert("L")).mean()))
    assert means[0] < 60 < 200 < means[1]


def test_a_report_on_real_runs(tmp_path: Path):
    options = ("model.name=mlp", "train.rounds=2", "train.batch_size=128", "evaluate.every=1", "evaluate.head_epochs=1")
    for method in ("fedbsd", "scaffold"):
        federate(tmp_path / f"runs/{method}", 1, *options, f"method.name={method}")
    report.report([str(tmp_path / "runs")])
    markdown = (tmp_path / "runs/report.md").read_text()
    assert "| scaffold | backbone 279,360 + head 650 + control_backbone 279,360 + control_head 650 |" in markdown
    assert "200.0 %" in markdown


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["{nowhere}"], "no such folder"),
        (["{empty}"], "holds no finished run"),
        ([], "name the directories"),
        (["{runs}", "--target=2"], "--target=0.9"),
        (["{runs}", "--target=high"], "--target=0.9"),
        (["{runs}", "--to=x"], "no such flag"),
        (["{runs}", "--out={runs}/fedavg_0/summary.json"], "cannot write there"),
        (["{damaged}"], "cannot be read"),
        (["{twice}"], "the same run twice"),
    ],
)
def test_wrong_input_is_told_in_one_message(arguments, hint, runs: Path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "damaged/a", "fedavg", 0, 0.5)
    (tmp_path / "damaged/a/ledger.jsonl").write_text("{}\n")
    for name in ("twice/a", "twice/b"):
        make_run(tmp_path / name, "fedavg", 0, 0.5)
    folders = {name: tmp_path / name for name in ("nowhere", "empty", "damaged", "twice")} | {"runs": runs}
    monkeypatch.setattr("sys.argv", ["report", *(argument.format(**folders) for argument in arguments)])
    if not arguments:
        with pytest.raises(UserError, match=hint):
            report.report(["--target=0.5"])
        return
    with pytest.raises(SystemExit) as leaving:
        report.main()
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("report.*"))
