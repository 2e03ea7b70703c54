"""The report says the numbers of the runs, needs nothing but itself, and believes no name that it finds."""

import base64
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import write_run

from fedbsd_dist import report
from fedbsd_dist.record import charts, compare, curves, grouping, page, sections

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
    assert histories[0].clients == [0.5, 1.0]  # of the last evaluation only


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
