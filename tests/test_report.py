"""The report says the numbers of the runs, needs nothing but itself, and believes no name that it finds."""

import base64
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ranks import federate
from run_folders import write_run

from fedbsd_dist import dialect, report
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.record import charts, compare, curves, grouping, page, sections
from fedbsd_dist.sweep import expand

PATIENCE = 60
"""Seconds that a browser may take."""


def show(monkeypatch, *arguments: object) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedbsd_dist.report", *map(str, arguments)])
    try:
        report.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


class Page(HTMLParser):
    """Every (tag, attributes), and all text outside of <style>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data) -> None:
        self.text += "" if self.tags and self.tags[-1][0] == "style" else data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two methods, two seeds, and a run that is not finished; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        accuracy = {"received": 0.8, "head_tuned": 0.9}
        write_run(folder / f"avg{seed}", "fedavg", seed, accuracy=accuracy, received=(0.2, 0.7, 0.6, 0.8))
        accuracy = {"received": 0.7, "head_tuned": 0.8}
        write_run(folder / f"bsd{seed}", "fedbsd", seed, accuracy=accuracy, received=(0.3, 0.4 + 0.4 * seed, 0.5, 0.7))
    write_run(folder / "cut").joinpath("summary.json").unlink()
    return folder


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory) -> tuple[str, str, str]:
    """(printed, HTML, Markdown)."""
    out = tmp_path_factory.mktemp("out") / "new"
    printed = report.report([str(sweep), f"--out={out}", "--target=0.75"])
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md"}
    return printed, (out / "report.html").read_text(), (out / "report.md").read_text()


def test_the_tables_are_in_page_and_markdown(written, sweep) -> None:
    printed, html, markdown = written
    assert "| fedavg | 80.00 ± 0.00 (40.00) | 90.00 ± 0.00 (45.00) | 2 | 8.0 kB |" in markdown
    assert "| fedavg - fedbsd | +10.00 \\[+10.00, +10.00\\] | +10.00 \\[+10.00, +10.00\\] | 2 |" in markdown
    # fedavg is there in round 4 with both seeds, fedbsd with one of two
    assert "Target: 75.00 % at received, as asked for." in markdown
    assert "| fedavg | 4.0 ± 0.0 | 8.0 kB |" in markdown
    assert "| fedbsd | reached by 1 of 2 seeds | - |" in markdown
    assert "| fedbsd | 360 B | 40 B | 400 B | 10.00 % |" in markdown
    for text in (printed, Page(html).text):
        assert f"left out: {sweep / 'cut'}: not finished: no summary.json" in text
    assert compare.comparison(sorted(sweep.iterdir())) in printed
    assert "90.00 ± 0.00 (45.00)" in Page(html).text


def test_the_page_needs_nothing_but_itself(written) -> None:
    _, html, _ = written
    shown = Page(html)
    assert not {tag for tag, _ in shown.tags} & {"script", "link", "iframe", "object", "embed", "base", "a"}
    fetched = [value for _, of in shown.tags for name, value in of.items() if name in ("src", "srcset", "href")]
    assert len(fetched) == 8  # four figures, light and dark
    assert all(value.startswith("data:image/svg+xml;base64,") for value in fetched)
    assert not re.search(r"url\(|@import|https?://", html)
    assert not [name for _, of in shown.tags for name in of if name.startswith("on")]


def test_figures_are_light_and_dark_and_described(written) -> None:
    _, html, _ = written
    shown = Page(html)
    for source, image in zip(shown.of("source"), shown.of("img"), strict=True):
        assert source["media"] == "(prefers-color-scheme: dark)"
        light, dark = (base64.b64decode(of.partition(",")[2]).decode() for of in (image["src"], source["srcset"]))
        assert charts.LIGHT.paper in light
        assert charts.DARK.paper in dark
        assert charts.DARK.paper not in light
        assert "fedavg" in image["alt"]
    assert "fedavg 80.0 %; fedbsd 70.0 %" in shown.of("img")[0]["alt"]


def test_the_same_runs_make_the_same_page(written, sweep, tmp_path) -> None:
    report.report([str(sweep), f"--out={tmp_path}", "--target=0.75"])
    assert (tmp_path / "report.html").read_text() == written[1]


def test_names_in_runs_are_text(tmp_path) -> None:
    evil = "<script>alert(1)</script>"
    settings = {"data": {"alpha": f'"><img src=x onerror=y> | $\\frac{{$ {evil}'}}
    write_run(tmp_path / "runs" / "<b>x", "<i>fed</i>", settings=settings, received=(0.5, 0.6))
    write_run(tmp_path / "runs" / "y", "fedbsd", received=(0.5, 0.6))
    write_run(tmp_path / "runs" / "<u>cut").joinpath("summary.json").unlink()
    report.report([str(tmp_path / "runs"), f"--out={tmp_path}"])
    shown = Page((tmp_path / "report.html").read_text())
    assert not {tag for tag, _ in shown.tags} & {"script", "i", "b", "u"}
    assert {tuple(of) for of in shown.of("img")} == {("src", "alt")}
    assert evil in shown.text
    assert "<u>cut" in shown.text
    markdown = (tmp_path / "report.md").read_text()
    assert "<" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| &lt;i&gt;") and "alert" in line]
    assert re.findall(r"(?<!\\)\|", rows[-1]) == ["|"] * 3  # of the settings: the bar in a name opens no column


def test_curves_are_cumulative_and_of_all_seeds(sweep) -> None:
    histories = [curves.read(sweep / f"bsd{seed}") for seed in (0, 1)]
    curve = curves.mean_curve(histories)
    assert [point.round for point, _ in curve] == [1, 2, 3, 4]
    assert [point.bytes for point, _ in curve] == [2000, 4000, 6000, 8000]
    assert [point.seconds for point, _ in curve] == [3, 6, 9, 12]  # training and communication, no evaluation
    assert curve[1][1].mean == pytest.approx(0.6)
    assert curve[1][1].std == pytest.approx(0.4 / 2**0.5)
    assert histories[0].clients == {"head_tuned": {0: 0.5, 1: 1.0}}  # of the last evaluation only


def test_a_target_is_met_where_it_is_first_seen(tmp_path) -> None:
    one = curves.read(write_run(tmp_path / "a", received=(0.2, 0.7, 0.6, 0.8)))
    assert [point.round for point in curves.reached([one], 0.7).points] == [2]
    assert curves.reached([one], 0.81).points == []


def test_the_target_is_near_the_best_unless_named(sweep) -> None:
    groups, _ = grouping.group(grouping.load([sweep / "avg0", sweep / "bsd0"])[0])
    assert curves.default_target(groups) == pytest.approx(0.95 * 0.8)
    rows = sections.target_rows(groups, [[curves.read(run.path) for run in one.runs] for one in groups], 0.76)
    assert rows[1:] == [["fedavg", "4.0 ± -", "8.0 kB"], ["fedbsd", "not reached", "-"]]


def test_runs_without_evaluations_on_the_way_say_so(tmp_path) -> None:
    write_run(tmp_path / "a")
    report.report([str(tmp_path)])  # into the one folder named
    markdown = (tmp_path / "report.md").read_text()
    assert "| fedbsd | no evaluation during the run | - |" in markdown
    assert "was not measured during the runs" in markdown
    assert "there are no other methods" in markdown


def test_a_run_that_says_which_rounds_count_has_a_table_of_them(tmp_path) -> None:
    more = {
        "accuracy_last_rounds": {"rounds": 10, "evaluations": 2, "received": {"mean": 0.61}},
        "best": {"round": 3, "validation": 0.9, "received": {"mean": 0.72}},
    }
    write_run(tmp_path / "a", "fedavg", summary=more)
    write_run(tmp_path / "b", "fedbsd")
    report.report([str(tmp_path)])
    markdown = (tmp_path / "report.md").read_text()
    assert "| method | last round | mean of the last 10 rounds | best round by validation |" in markdown
    assert "| fedavg | 50.00 ± - | 61.00 ± - | 72.00 ± - |" in markdown
    assert "| fedbsd | 50.00 ± - | - | - |" in markdown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", "no\n"),
        ("ledger.jsonl", '{"round": 1, "purpose": "aggregate", "elements_by_group": {"backbone": -5}}\n'),
        ("clients.csv", "round,stage,client,num_train,num_test,accuracy,loss\n1,head_tuned,0,1,1,nan,1\n"),
        ("clients.csv", "round,stage\n1,head_tuned\n"),
        ("clients.csv", "\udcff"),
    ],
)
def test_a_run_whose_record_is_damaged_is_named(tmp_path, name, text) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad", "fedavg")
    (bad / name).write_bytes(text.encode(errors="surrogateescape"))
    printed = report.report([str(tmp_path)])
    assert f"left out: {bad}: " in printed
    assert "fedavg" not in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target=1.5",), "--target=1.5: should be a number above 0 and up to 1"),
        (("--target=nan",), "--target=nan: should be a number above 0 and up to 1"),
        (("--target=much",), "--target=much: should be a number above 0 and up to 1"),
        (("--colour=red",), "--colour=red: no such flag"),
        (("--out=a", "--out=b"), "--out: give it once"),
        (("nowhere",), "nowhere: no such folder"),
        (("empty",), "empty: holds no run"),
        (("--out=file/report",), "--out=file/report: cannot write"),
        (("--out=out", "--own=lr"), "--own=lr: no run has an option lr"),
    ],
)
def test_a_mistake_is_told_in_one_line(sweep, tmp_path, monkeypatch, capsys, arguments, says) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert show(monkeypatch, sweep, *arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("fedbsd_dist: ")
    assert says in told.err
    assert told.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


def test_flags_without_runs_and_the_help(monkeypatch, capsys) -> None:
    assert show(monkeypatch, "--target=0.5") == 2
    assert "no runs named" in capsys.readouterr().err
    assert show(monkeypatch, "--help") == 0
    assert capsys.readouterr().out.startswith("usage: python -m fedbsd_dist.report")


def test_several_folders_and_one_run_named_twice(sweep, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = report.report([str(sweep / "avg0"), str(sweep / "avg0"), str(sweep / "bsd0")])
    assert "left out" not in printed
    assert (tmp_path / "report" / "report.html").exists()


def tried(path: Path, method: str, lr: float, validation: dict[str, float], seed: int = 9, **options: float) -> None:
    """A run of a search, whose test accuracy is the worse the better validation is."""
    accuracy = {"received": 1 - max(validation.values(), default=0), "head_tuned": 0.5}
    settings = {"train": {"lr": lr}, "method": options}
    write_run(path, method, seed, accuracy=accuracy, received=(0.9, 0.1), validation=validation, settings=settings)


def test_another_method_can_be_the_baseline(tmp_path) -> None:
    for method, mean in (("fedavg", 0.5), ("fedbsd", 0.75), ("fedper", 0.25)):
        write_run(tmp_path / method, method, accuracy={"received": mean, "head_tuned": mean})
    report.report([str(tmp_path), "--baseline=fedavg"])
    markdown = (tmp_path / "report.md").read_text()
    assert "## Difference to fedavg\n" in markdown
    assert "| fedper - fedavg | -25.00 | -25.00 | 1 |" in markdown
    with pytest.raises(UserError, match=r"--baseline=local: no run is of that\. There are: fedbsd, fedavg, fedper"):
        report.report([str(tmp_path), "--baseline=local"])


def test_accuracy_on_validation_samples_stands_beside_where_there_are_some(tmp_path) -> None:
    """Of the better stage, mean over seeds."""
    tried(tmp_path / "a0", "fedbsd", 0.1, {"received": 0.5, "trained": 0.25}, seed=0)
    tried(tmp_path / "a1", "fedbsd", 0.1, {"received": 0.5, "trained": 0.75}, seed=1)
    write_run(tmp_path / "b", "fedavg")
    report.report([str(tmp_path)])
    lines = (tmp_path / "report.md").read_text().splitlines()
    head = next(number for number, line in enumerate(lines) if "| validation |" in line)
    at = lines[head].split(" | ").index("validation")
    assert sorted(line.split(" | ")[at] for line in lines[head + 2 : head + 4]) == ["-", "62.50 ± 17.68"]


def test_the_best_is_chosen_on_validation_samples_and_read_by_a_sweep(tmp_path) -> None:
    runs, best = tmp_path / "runs", tmp_path / "best.yaml"
    for lr, both in ((0.1, (0.5, 0.6)), (0.2, (0.3, 0.8)), (0.3, (0.7, 0.75))):
        tried(runs / f"avg{lr}", "fedavg", lr, dict(zip(("received", "trained"), both, strict=True)))
    for lam, value in ((0.1, 0.6), (0.5, 0.4)):
        tried(runs / f"ditto{lam}", "ditto", 0.4, {"received": value}, lam=lam)
    tried(runs / "pfedme", "pfedme", 0.4, {"received": 0.5}, lam=3.0, steps=5)
    report.report([str(runs), f"--best={best}", f"--out={tmp_path}"])
    # what one method alone had, and what all runs of a method had otherwise than usual, is chosen as well
    chosen = [(p.config.method.name, p.config.train.lr, getattr(p.config.method, "lam", None), p.config.seed)
              for p in expand([str(best), "seed=[0,1]"], OPTIONS)]  # fmt: skip
    of_seed = [("fedavg", 0.2, None), ("ditto", 0.4, 0.1), ("pfedme", 0.4, 3.0)]
    assert sorted(chosen, key=str) == sorted(((*of, seed) for of in of_seed for seed in (0, 1)), key=str)
    assert "steps" not in best.read_text()
    markdown = (tmp_path / "report.md").read_text()
    assert "| fedavg | train.lr=0.2 | 80.00 | 3 |" in markdown
    tried(runs / "avg0.05", "fedavg", 0.05, {"received": 0.9})
    report.report([str(runs), f"--best={best}", f"--out={tmp_path}"])
    assert "| fedavg | train.lr=0.05 (at the edge) | 90.00 | 4 |" in (tmp_path / "report.md").read_text()


def test_what_diverged_with_one_seed_is_no_choice(tmp_path) -> None:
    for seed in (8, 9):
        tried(tmp_path / f"low{seed}", "fedavg", 0.1, {"received": 0.5}, seed)
    tried(tmp_path / "high", "fedavg", 0.2, {"received": 0.9}, 8)
    report.report([str(tmp_path), f"--best={tmp_path / 'best.yaml'}"])
    assert "train.lr: 0.1" in (tmp_path / "best.yaml").read_text()


def test_a_search_may_leave_tests_out(tmp_path) -> None:
    for rate, every, value in ((0.1, 5, 0.5), (0.2, 0, 0.9), (0.3, 5, 0.6)):
        settings = {"train": {"lr": rate}, "evaluate": {"every": every}}
        write_run(tmp_path / f"a{rate}", "fedavg", settings=settings, validation={"received": value})
    write_run(tmp_path / "b", "fedper", settings=settings, validation={"received": 0.5})
    best = tmp_path / "best.yaml"
    report.report([str(tmp_path), f"--best={best}"])
    avg, per = dialect.parse(best.read_text())["method"]
    assert avg == {"name": "fedavg", "train.lr": 0.2}
    assert per == {"name": "fedper", "train.lr": 0.3}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"validation": {}}, "held no validation samples out"),
        ({"settings": {"data": {"alpha": 5.0}}}, "runs of fedavg differ in data.alpha, which is no choice"),
        ({"sha256": "others"}, "have not all the same seeds and clients"),
        ({"seed": 8}, "have not all the same seeds and clients"),
    ],
)
def test_what_cannot_be_chosen_from(tmp_path, other, says) -> None:
    one = {"validation": {"received": 0.5}, "settings": {"train": {"lr": 0.1}}}
    write_run(tmp_path / "a", "fedavg", **one)
    settings = {**other.get("settings", {}), "train": {"lr": 0.2}}
    write_run(tmp_path / "b", "fedavg", **{**one, **other, "settings": settings})
    with pytest.raises(UserError, match=says):
        report.report([str(tmp_path), f"--best={tmp_path / 'best.yaml'}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_methods_with_settings_of_their_own_are_compared_when_asked_for(tmp_path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", "fedavg", seed, settings={"train": {"lr": 0.1, "batch": 5}})
        write_run(tmp_path / f"b{seed}", "fedbsd", seed, settings={"train": {"lr": 0.2, "batch": 5}})
    assert "| fedavg lr=0.1 - fedbsd |" not in markdown_of(tmp_path)
    assert "| fedavg lr=0.1 - fedbsd | +0.00" in markdown_of(tmp_path, "--own=train.lr")
    assert "| fedavg lr=0.1 - fedbsd |" not in markdown_of(tmp_path, "--own=train.batch")
    with pytest.raises(UserError, match=r"no run has an option train\.lrr"):
        report.report([str(tmp_path), "--own=train.lr,train.lrr"])


def markdown_of(runs: Path, *flags: str) -> str:
    report.report([str(runs), *flags])
    return (runs / "report.md").read_text()


def test_several_benchmarks_stand_beside_each_other(tmp_path) -> None:
    """Each with rates of its own; one method is in one of them alone, and one has two rates in the other."""
    easy = {"alpha": 5.0, "source": "mnist", "partition": "dirichlet"}
    benchmarks = {"easy": easy, "hard": {**easy, "alpha": 0.1, "source": "digits"}}

    def write(method: str, benchmark: str, rate: float, *means: float) -> None:
        for seed, mean in enumerate(means):
            path = tmp_path / f"{method}-{benchmark}-{rate}-{seed}"
            settings = {"data": benchmarks[benchmark], "train": {"lr": rate}}
            write_run(path, method, seed, accuracy={"received": mean}, settings=settings, sha256=benchmark)

    write("fedbsd", "easy", 0.1, 0.9, 0.8)
    write("fedbsd", "hard", 0.5, 0.7, 0.6)
    write("fedavg", "easy", 1.1, 0.6, 0.7)
    write("fedavg", "hard", 0.2, 0.7, 0.7)
    write("apfl", "easy", 0.1, 0.95, 0.85)
    write("apfl", "hard", 0.1, 0.6, 0.49)
    write("fedper", "easy", 0.3, 0.3)
    write("fedper", "hard", 0.4, 0.4)
    write("fedper", "hard", 0.6, 0.2)
    write("local", "easy", 0.3, 0.5)
    report.report([str(tmp_path), "--own=train.lr", f"--out={tmp_path / 'out'}", f"--figures={tmp_path / 'figures'}"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "| method | digits | mnist |\n|---|---:|---:|\n"
        "| fedbsd | 65.00 ± 7.07 | 85.00 ± 7.07 |\n"
        "| apfl | 54.50 ± 7.78 ▼ | 90.00 ± 7.07 ▲ |\n"
        "| fedavg | 70.00 ± 0.00 | 65.00 ± 7.07 |\n"
        "| fedper | 40.00 ± - or 20.00 ± - | 30.00 ± - |\n\n"
    ) in text
    # by seed: fedavg 0 and +.1, -.3 and -.1, with Student's t of one degree of freedom
    assert (
        "| difference | digits | mnist |\n|---|---:|---:|\n"
        "| apfl | -10.50 \\[-16.85, -4.15\\] | +5.00 \\[+5.00, +5.00\\] |\n"
        "| fedavg | +5.00 \\[-58.53, +68.53\\] | -20.00 \\[-147.06, +107.06\\] |\n"
        "| fedper | -30.00 or -50.00 | -60.00 |\n\n"
    ) in text
    shown = (tmp_path / "figures" / "all-benchmarks-received-difference-to-fedbsd-1-light.svg").read_text()
    assert shown.startswith("<?xml")


def test_clients_are_paired_with_themselves(tmp_path) -> None:
    """p of 8 gains and no loss: 2 / 2^8; clients of one seed are never paired with those of another."""
    for seed, gain in ((0, 0.05), (1, 0.15)):
        mine, base = ([value + 0.1 * seed for value in (0.1, 0.2, 0.3, 0.4, 0.5)] for _ in range(2))
        mine[:4] = [value + gain + 0.01 * client for client, value in enumerate(mine[:4])]
        write_run(tmp_path / f"a{seed}", "fedavg", seed, clients=mine)
        write_run(tmp_path / f"b{seed}", "fedbsd", seed, clients=base)
    # 4 x (0.05 + 0.15) + 2 x 0.06 over 10 clients
    assert "| fedavg - fedbsd | - | +9.20 (8 : 0 : 2), p = 0.0078 |" in markdown_of(tmp_path)


def test_clients_that_are_all_alike_differ_by_chance(tmp_path) -> None:
    write_run(tmp_path / "a", "fedavg")
    write_run(tmp_path / "b", "fedbsd")
    assert "+0.00 (0 : 0 : 2), p = 1.0000" in markdown_of(tmp_path)


def test_a_benchmark_is_called_by_what_tells_it_apart(tmp_path) -> None:
    """Here the number of channels goes with the source, and says nothing new; and of mnist there is one alpha."""
    places = {"a": ("mnist", 1, 0.1, 5), "b": ("digits", 3, 0.1, 5), "c": ("digits", 3, 0.5, 9)}
    for name, values in places.items():
        settings = {"data": dict(zip(("source", "channels", "alpha", "num_clients"), values, strict=True))}
        for method in ("fedavg", "fedbsd"):
            write_run(tmp_path / f"{method}{name}", method, settings=settings, sha256=name)
    assert "| method | digits alpha=0.1 | digits alpha=0.5 | mnist |" in markdown_of(tmp_path)


def test_a_setting_with_three_values_has_a_table_and_a_figure(tmp_path) -> None:
    for alpha, value in ((0.1, 0.5), (0.5, 0.6), (5.0, 0.7)):
        for seed in (0, 1):
            accuracy = {"received": value + 0.1 * seed, "trained": value}
            at = {"settings": {"data": {"alpha": alpha}}, "accuracy": accuracy}
            write_run(tmp_path / f"b{alpha}-{seed}", "fedbsd", seed, **at)
            if alpha < 1:
                write_run(tmp_path / f"a{alpha}-{seed}", "fedavg", seed, **at)
    markdown = markdown_of(tmp_path)
    assert "| runs | 0.1 | 0.5 | 5 |" in markdown
    assert "| fedbsd | 55.00 ± 7.07 | 65.00 ± 7.07 | 75.00 ± 7.07 |" in markdown
    assert "| fedavg | 55.00 ± 7.07 | 65.00 ± 7.07 | - |" in markdown
    assert "| fedbsd | 50.00 ± 0.00 | 60.00 ± 0.00 | 70.00 ± 0.00 |" in markdown
    shown = Page((tmp_path / "report.html").read_text())
    drawn = [image["alt"] for image in shown.of("img") if "against data.alpha" in image["alt"]]
    assert [alt.split()[3] for alt in drawn] == ["received", "trained"]


@pytest.mark.parametrize(
    "rates", [{"fedbsd": (0.1, 0.2), "fedavg": (0.3,)}, {"fedbsd": (0.1,), "fedavg": (0.2,), "ditto": (0.3,)}]
)
def test_what_each_method_has_for_itself_is_no_ablation(tmp_path, rates) -> None:
    for method, values in rates.items():
        for value in values:
            write_run(tmp_path / f"{method}{value}", method, settings={"train": {"lr": value}})
    assert "## Against" not in markdown_of(tmp_path)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """Real ones, of two methods, with validation samples; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    short = (
        "train.rounds=3",
        "train.local_epochs=1",
        "evaluate.every=1",
        "data.num_clients=4",
        "model.name=mlp",
        "train.batch_size=200",
    )
    for method in ("fedavg", "fedbsd"):
        federate(folder / method, 1, *short, "data.val_fraction=0.1", f"method.name={method}")
    return folder


def test_what_is_kept_of_runs_makes_the_same_report(two_runs, tmp_path) -> None:
    kept = tmp_path / "kept"
    report.report([str(two_runs), f"--out={tmp_path / 'whole'}", f"--keep={kept}", f"--best={tmp_path / 'a'}"])
    assert sorted(path.name for path in kept.iterdir()) == ["fedavg", "fedbsd"]
    report.report([str(kept), f"--out={tmp_path / 'cut'}", f"--best={tmp_path / 'b'}"])
    whole, cut = ((tmp_path / name / "report.md").read_text() for name in ("whole", "cut"))
    assert cut == whole
    assert "client by client" in whole
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "cut" / "report.html").stat().st_size > 50_000  # with its figures
    size = sum(path.stat().st_size for path in (kept / "fedbsd").iterdir())
    assert size < 12_000 < sum(path.stat().st_size for path in (two_runs / "fedbsd").glob("*.*"))
    assert str(two_runs) not in "".join(path.read_text() for path in kept.rglob("*.*"))
    # what was kept can be kept again, the same
    report.report([str(kept), f"--out={tmp_path / 'cut'}", f"--keep={tmp_path / 'again'}"])
    for path in kept.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(kept)).read_bytes() == path.read_bytes()


def test_figures_are_files_when_asked_for(two_runs, tmp_path) -> None:
    report.report([str(two_runs), f"--out={tmp_path}", f"--figures={tmp_path / 'figures'}"])
    names = [f"learning-curves-{number}" for number in (1, 2, 3)] + ["spread-over-clients-1"]
    found = {path.name for path in (tmp_path / "figures").iterdir()}
    assert found == {f"{name}-{shade}.svg" for name in names for shade in ("light", "dark")}
    html = (tmp_path / "report.html").read_text()
    for path in (tmp_path / "figures").iterdir():
        assert base64.b64encode(path.read_bytes()).decode() in html


def test_what_was_kept_is_not_written_over(two_runs, tmp_path) -> None:
    (tmp_path / "kept" / "fedbsd").mkdir(parents=True)
    with pytest.raises(UserError, match="fedbsd is there already"):
        report.report([str(two_runs), f"--keep={tmp_path / 'kept'}", f"--out={tmp_path / 'out'}"])
    write_run(tmp_path / "a" / "same", "fedavg")
    write_run(tmp_path / "b" / "same", "fedbsd")
    with pytest.raises(UserError, match="several runs are called same"):
        report.report(
            [str(tmp_path / "a"), str(tmp_path / "b"), f"--keep={tmp_path / 'new'}", f"--out={tmp_path / 'out'}"]
        )
    with pytest.raises(UserError, match="is one of the runs"):
        report.report([str(tmp_path / "a/same"), f"--keep={tmp_path / 'a/same'}", f"--out={tmp_path / 'out'}"])
    assert [path.name for path in (tmp_path / "kept").rglob("*")] == ["fedbsd"]
    assert not (tmp_path / "new").exists()


def test_eighteen_methods_have_styles_of_their_own() -> None:
    styles = [charts._style(charts.LIGHT, number) for number in range(18)]
    assert len({(of["color"], of["marker"], of["linestyle"]) for of in styles}) == 18
    lines = [charts.Line(f"method {number}", [1, 2], [50, 60 + number], [1, 1]) for number in range(18)]
    for picture in (charts.curves(lines, "rounds"), charts.panels(lines, "rounds")):
        assert picture.light.count(b"<!-- method 17 -->") == 1


def test_a_browser_shows_it_in_light_and_in_dark(written, tmp_path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium here")
    from PIL import Image

    (tmp_path / "report.html").write_text(written[1])
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,1500")
    for scheme, theme, other in ((1, charts.LIGHT, charts.DARK), (0, charts.DARK, charts.LIGHT)):
        shot = tmp_path / f"{scheme}.png"
        setting = f"--blink-settings=preferredColorScheme={scheme}"
        command = [browser, *flags, setting, f"--screenshot={shot}", f"file://{tmp_path}/report.html"]
        subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
        with Image.open(shot) as picture:
            pixels = picture.convert("RGB").getcolors(2**24)
        shown = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in pixels}
        assert max(pixels)[1] == tuple(bytes.fromhex(theme.paper[1:]))
        assert {theme.colours[0], theme.colours[1], theme.ink} <= shown  # of both curves, and of the text
        assert not set(other.colours[:2]) & shown


def test_page_and_figures_have_the_same_colours() -> None:
    for theme in (charts.LIGHT, charts.DARK):
        assert f"--paper: {theme.paper}; --ink: {theme.ink};" in page.STYLE
