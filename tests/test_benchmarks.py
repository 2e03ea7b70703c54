"""The frame of the benchmarks: what they say, and that all of them are run."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
NO_ROWS = {
    "__main__",
    "rows",
    "sides",
    "synthetic",
    "opened",
    "digit_domains",
    "input_path",
    "kills",
    "together",
    "readme_tables",
}
"""Of the folder's modules: the frame, what others have in common, and what answers to no goal."""

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from rows import cannot, main, measured
SECONDS = 8, 2
'''It takes, whole and quick.'''
def rows(quick, *arguments):
    yield measured(8, f"quick {{quick}}, {{[*arguments]}}", [3.0, 1.0, 2.0], "s", bound=2.5)
    print("by the way")
    yield cannot(3, "busy share", "no GPU here: run it on a machine that has one.")
    {then}
main(rows)
"""


@pytest.fixture
def frame(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield runpy.run_path(str(FOLDER / "rows.py")) | runpy.run_path(str(FOLDER / "__main__.py"))
    sys.modules.pop("rows", None)


@pytest.fixture
def found(frame: dict[str, Any]) -> list[Any]:
    measured = frame["measured"]
    return [
        measured(8, "reduction", [1.2, 1.0, 1.4], bound=1.1),
        measured(2, "round", [3.5], bound=3, at_most=False),
        measured(9, "memory", [123456.0, 123458.0], "MB"),
        frame["cannot"](3, "busy share", "no GPU here: run it on a machine that has one."),
    ]


def test_table_says_value_spread_bound_and_whether_it_holds(frame, found):
    machine, _, head, *lines = frame["table"](found).splitlines()
    assert "torch " in machine
    assert "cores " in machine
    assert head.split() == ["goal", "what", "value", "least", "to", "greatest", "runs", "bound", "holds"]
    assert [" ".join(line.split()) for line in lines] == [
        "2 against the usual ways round 3.5 times 1 >= 3 yes",
        "8 reduction reduction 1.2 times 1 to 1.4 3 <= 1.1 NO",
        "9 memory memory 123457 MB 123456 to 123458 2",
        "not measured: 3 GPU, busy share: no GPU here: run it on a machine that has one.",
    ]


@pytest.mark.parametrize(("value", "at_most", "holds"), [(1.1, True, True), (1.2, True, False), (1.0, False, False)])
def test_bound(frame, value, at_most, holds):
    assert frame["measured"](1, "", [value], bound=1.1, at_most=at_most).holds is holds


def test_json_has_the_machine_and_all_rows(frame, found):
    document = json.loads(frame["document"](found))
    assert {"cpu", "cores", "torch", "torchvision", "python", "date"} <= document["machine"].keys()
    assert [row["holds"] for row in document["rows"]] == [False, True, None, None]
    assert document["rows"][0] == {
        "goal": 8,
        "name": "reduction",
        "what": "reduction",
        "value": 1.2,
        "unit": "times",
        "least": 1.0,
        "greatest": 1.4,
        "runs": 3,
        "bound": 1.1,
        "at_most": True,
        "why": "",
        "holds": False,
    }
    assert document["rows"][3]["why"] == "no GPU here: run it on a machine that has one."


def test_rows_of_a_script_and_where_it_broke_off(frame, tmp_path):
    for name, then in (("sound", ""), ("broken", "raise ValueError('no such thing')")):
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(folder=str(FOLDER), then=then))
    assert frame["benchmarks"](tmp_path) == {"broken": (8, 2), "sound": (8, 2)}
    first, second = frame["rows_of"]("sound", True, tmp_path)
    assert (first.what, first.value, first.least, first.greatest, first.holds) == ("quick True, []", 2, 1, 3, True)
    assert (second.goal, second.value, second.holds) == (3, None, None)
    first, _, broken = frame["rows_of"]("broken", False, tmp_path)
    assert first.what == "quick False, []"
    assert broken.value is None
    assert broken.why == (
        "broke off with exit code 1 (ValueError: no such thing). See `python tests/benchmarks/broken.py`."
    )


def test_every_benchmark_is_known(frame):
    assert {*frame["benchmarks"]()} == {path.stem for path in FOLDER.glob("*.py")} - NO_ROWS


def test_command_tells_progress_and_writes_json(frame, tmp_path, monkeypatch, capsys):
    (tmp_path / "sound.py").write_text(SCRIPT.format(folder=str(FOLDER), then=""))
    main = frame["main"]
    names = main.__globals__
    monkeypatch.setitem(names, "benchmarks", lambda: {"sound": (120, 2), "other": (1, 1)})
    monkeypatch.setitem(names, "rows_of", lambda name, quick, rows_of=names["rows_of"]: rows_of(name, quick, tmp_path))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "sound", "--json", str(tmp_path / "out.json")])
    main()
    said = capsys.readouterr()
    assert "[1/1] sound; about 2 min are left" in said.err
    assert "quick False, []: 2 s" in said.err
    assert "busy share: no GPU here" in said.err
    assert "1 to 3" in said.out
    assert [row["value"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == [2, None]
