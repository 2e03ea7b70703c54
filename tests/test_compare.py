"""The table over finished runs: means, deviations and paired intervals against numbers worked out by hand."""

import json
import math
from pathlib import Path

import pytest
from run_folders import write_run

from fedbsd_dist.errors import UserError
from fedbsd_dist.record import compare
from fedbsd_dist.record.compare import comparison, difference_rows, differences, points
from fedbsd_dist.record.grouping import Group, Spread, group, load, spread


def groups_of(*paths: Path) -> list[Group]:
    return group(load(paths)[0])[0]


def tuned(mean: float, received: float = 0.5) -> dict[str, float]:
    return {"received": received, "head_tuned": mean}


def row_of(text: str, label: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{label} "))
    return line.split()


@pytest.mark.parametrize(
    ("values", "half"),
    # t of 0.975: 12.7062 for one degree of freedom, 4.30265 for two, 2.26216 for nine
    [((0.0, 2.0), 12.7062), ((1.0, 2.0, 3.0), 4.30265 / math.sqrt(3)), ((0.0, 2.0) * 5, 2.26216 / 3), ((5.0, 5.0), 0)],
)
def test_the_interval_is_students(values, half) -> None:
    assert spread(values).half == pytest.approx(half, rel=1e-5)


def test_one_value_has_neither_deviation_nor_interval() -> None:
    assert spread([0.5]) == Spread(0.5, None, 1)
    assert spread([0.5]).half is None
    assert compare.percent(spread([0.5])) == "50.00 +- -"
    assert points(spread([-0.25])) == "-25.00"


def test_mean_and_sample_deviation_over_seeds_best_first(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "a0", "fedavg", 0, accuracy=tuned(0.90)),
        write_run(tmp_path / "a1", "fedavg", 1, accuracy=tuned(0.94)),
        write_run(tmp_path / "b0", "fedbsd", 0, accuracy=tuned(0.95), received=(0.1, 0.5)),
    ]
    text = comparison(paths)
    rows = text.splitlines()
    head = next(number for number, line in enumerate(rows) if line.startswith("method "))
    assert rows[head].split()[:3] == ["method", "received", "head_tuned"]
    # 2.83 is the root of ((2^2 + 2^2) / 1), and not of half of it
    assert rows[head + 2].split() == ["fedavg", "50.00", "+-", "0.00", "92.00", "+-", "2.83", "46.00", "2", "2.0", "kB"]
    assert rows[head + 1].split() == ["fedbsd", "50.00", "+-", "-", "95.00", "+-", "-", "47.50", "1", "4.0", "kB"]


def test_differences_are_paired_by_seed(tmp_path) -> None:
    for seed, (mine, base) in enumerate([(0.90, 0.80), (0.80, 0.68), (0.70, 0.56)]):
        write_run(tmp_path / f"a{seed}", "fedavg", seed, accuracy=tuned(mine))
        write_run(tmp_path / f"b{seed}", "fedbsd", seed, accuracy=tuned(base))
    write_run(tmp_path / "a9", "fedavg", 9, accuracy=tuned(0.1))  # a seed that the baseline has not
    (found,), lonely = differences(groups_of(*sorted(tmp_path.iterdir())))
    assert (found.label, found.num_seeds, lonely) == ("fedavg - fedbsd", 3, [])
    of = found.by_stage["head_tuned"]
    assert (of.mean, of.std) == (pytest.approx(0.12), pytest.approx(0.02))
    # 2 x 4.30265 / root of 3 = 4.97
    assert difference_rows([found], ["received", "head_tuned", "new_client"])[1] == [
        "fedavg - fedbsd", "+0.00 [+0.00, +0.00]", "+12.00 [+7.03, +16.97]", "-", "3"
    ]  # fmt: skip


def test_one_shared_seed_is_said_so(tmp_path) -> None:
    text = comparison(
        [write_run(tmp_path / "a", "fedavg", accuracy=tuned(0.7)), write_run(tmp_path / "b", accuracy=tuned(0.8))]
    )
    assert row_of(text, "fedavg - fedbsd")[3:] == ["+0.00", "-10.00", "1"]
    assert "no interval" in text


@pytest.mark.parametrize(
    "apart", [{"seed": 1}, {"settings": {"data": {"alpha": 0.5}}}, {"sha256": "other clients"}], ids=str
)
def test_what_differs_in_more_than_the_method_is_no_pair(tmp_path, apart) -> None:
    paths = [write_run(tmp_path / "a", "fedavg"), write_run(tmp_path / "b", "fedbsd", **apart)]
    found, lonely = differences(groups_of(*paths))
    assert found == []
    assert len(lonely) == 1
    assert lonely[0].startswith("fedavg")
    assert f"No fedbsd with the same seeds, clients and other settings: {lonely[0]}." in comparison(paths)


def test_variants_of_the_baseline_are_compared_with_it_as_it_is_by_default(tmp_path) -> None:
    usual = {"method": {"distillation": "logits_kl", "distillation_weight": 0.3}}
    for seed, mean in enumerate((0.6, 0.7)):
        write_run(tmp_path / f"u{seed}", seed=seed, accuracy=tuned(mean), settings=usual)
        for weight in (0.0, 3.0):
            options = {"method": {**usual["method"], "distillation_weight": weight}}
            path = tmp_path / f"v{weight}{seed}"
            write_run(path, seed=seed, accuracy=tuned(mean + weight / 100), settings=options)
    write_run(tmp_path / "other", "fedavg", accuracy=tuned(0.5))
    found, lonely = differences(groups_of(*sorted(tmp_path.iterdir())))
    by_label = {of.label: of.by_stage["head_tuned"].mean for of in found}
    expected = {"fedbsd distillation_weight=0.0 - fedbsd": 0.0, "fedbsd distillation_weight=3.0 - fedbsd": 0.03}
    expected["fedavg - fedbsd"] = -0.1
    assert by_label == pytest.approx(expected)
    assert lonely == []


@pytest.mark.parametrize("name", ["fedbsd distillation_weight=0.0 lr=0.1", "fedbsd distillation_weight=0.0"])
def test_all_are_compared_with_a_row_that_is_named(tmp_path, name) -> None:
    for weight, mean in ((0.0, 0.5), (1.0, 0.6), (3.0, 0.75)):
        settings = {"method": {"distillation_weight": weight}, "train": {"lr": 0.1 * (weight + 1)}}
        write_run(tmp_path / f"v{weight}", accuracy=tuned(mean), settings=settings)
    write_run(tmp_path / "a", "fedavg", accuracy=tuned(0.25), settings={"train": {"lr": 0.5}})
    groups, _ = group(load(sorted(tmp_path.iterdir()))[0], ["train.lr"])
    found, lonely = differences(groups, name, ["train.lr"])
    apart = sorted(100 * of.by_stage["head_tuned"].mean for of in found)
    assert (apart, lonely) == (pytest.approx([-25, 10, 25]), [])


def test_every_variant_of_the_baseline_is_compared_with(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "a", "fedavg", accuracy=tuned(0.5)),
        write_run(tmp_path / "b", accuracy=tuned(0.4), settings={"method": {"weight": 0.0}}),
        write_run(tmp_path / "c", accuracy=tuned(0.3), settings={"method": {"weight": 1.0}}),
    ]
    found, _ = differences(groups_of(*paths))
    assert {d.label: round(d.by_stage["head_tuned"].mean, 9) for d in found} == {
        "fedavg - fedbsd weight=0.0": 0.1,
        "fedavg - fedbsd weight=1.0": 0.2,
    }


def test_another_baseline(tmp_path) -> None:
    paths = [write_run(tmp_path / "a", "fedavg"), write_run(tmp_path / "b", "fedbsd")]
    assert "fedbsd - fedavg" in comparison(paths, "fedavg")


def test_labels_are_the_method_and_what_differs(tmp_path) -> None:
    own = {"method": {"weight": 1.0}}
    paths = [
        write_run(tmp_path / "0", "fedavg"),
        write_run(tmp_path / "1", "fedavg", settings={"data": {"alpha": 0.5}, "run": {"dir": "elsewhere"}}),
        write_run(tmp_path / "2", "fedbsd", settings=own),
    ]
    assert {one.label for one in groups_of(*paths)} == {"fedavg alpha=0.1", "fedavg alpha=0.5", "fedbsd alpha=0.1"}
    # options of one method differ only where that method has two values of them
    paths.append(write_run(tmp_path / "3", "fedbsd", settings={"method": {"weight": 0.0}}))
    assert "fedbsd weight=0.0 alpha=0.1" in {one.label for one in groups_of(*paths)}


def test_fields_of_one_name_in_two_sections_are_told_apart(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "0", settings={"method": {"lr": 1}, "train": {"lr": 2}}),
        write_run(tmp_path / "1", settings={"method": {"lr": 3}, "train": {"lr": 4}}),
    ]
    assert {one.label for one in groups_of(*paths)} == {
        "fedbsd method.lr=1 train.lr=2",
        "fedbsd method.lr=3 train.lr=4",
    }


def test_a_run_copied_is_not_a_second_seed(tmp_path) -> None:
    paths = [write_run(tmp_path / name, "fedavg") for name in ("a", "b")]
    text = comparison(paths)
    assert row_of(text, "fedavg")[-3] == "1"
    assert f"left out: {paths[1]}: settings and seed are those of {paths[0]}" in text


def damage(path: Path, name: str, text: str | None) -> Path:
    (path / name).unlink()
    if text is not None:
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("summary.json", None, "not finished"),
        ("summary.json", "{", "summary.json"),
        ("summary.json", json.dumps({"accuracy": {}, "bytes": {}}), "accuracy"),
        ("summary.json", '{"accuracy": {"received": {"mean": NaN, "worst_10pct": 0}}, "bytes": {}}', "received.mean"),
        ("summary.json", '{"accuracy": {"<b>": {"mean": 1, "worst_10pct": 0}}, "bytes": {}}', "accuracy"),
        ("config.yaml", "seed: [", "not valid YAML"),
        ("config.yaml", "a: 1", "no configuration"),
        ("config.yaml", "seed: 1", "names no method"),
        ("config.yaml", "[" * 5000, "not valid YAML"),
        ("config.yaml", None, "config.yaml: No such file"),
        ("partition.json", "[]", "partition.json"),
    ],
)
def test_damaged_directories_are_named_and_the_others_compared(tmp_path, name, text, why) -> None:
    bad = damage(write_run(tmp_path / "bad", "fedavg"), name, text)
    table = comparison([bad, write_run(tmp_path / "good")])
    (told,) = (line for line in table.splitlines() if line.startswith("left out: "))
    assert str(bad) in told
    assert why in told
    assert row_of(table, "fedbsd")


def test_nothing_left_is_an_error_that_names_all(tmp_path) -> None:
    with pytest.raises(UserError) as error:
        comparison([tmp_path / "nowhere", damage(write_run(tmp_path / "cut"), "summary.json", None)])
    assert "no finished run" in str(error.value)
    assert "nowhere: no such directory" in str(error.value)
    assert "cut: not finished" in str(error.value)
