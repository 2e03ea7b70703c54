"""The command line: help, the order in which options win, configurations that read back to the same."""

import re
from pathlib import Path

import pytest
import yaml

from fedbsd_dist import main
from fedbsd_dist.commandline import help_text, load, read_values
from fedbsd_dist.config import RunConfig, Section
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS


def options() -> list[tuple[str, object]]:
    """(key, default) of every field of every section and method, found without the package's own list."""
    found = []
    for name, field in RunConfig.model_fields.items():
        if name == "method":
            for method in OPTIONS.values():
                found += [(f"method.{key}", option.default) for key, option in method.model_fields.items()]
        elif isinstance(field.default, Section):
            found += [(f"{name}.{key}", value) for key, value in field.default]
        else:
            found.append((name, field.default))
    return found


KEYS = [
    "seed run.dir run.overwrite run.resume method.name data.source data.partition data.num_clients",
    "train.rounds train.local_epochs train.batch_size train.lr train.participation model.name",
    "evaluate.every checkpoint.every wire.sum wire.codec",
]


def test_the_keys_that_users_rely_on_exist() -> None:
    assert set(" ".join(KEYS).split()) <= {key for key, _ in options()}


@pytest.mark.parametrize(("key", "default"), [(key, default) for key, default in options() if key != "method.name"])
def test_help_gives_every_option_with_default_and_meaning(key: str, default: object) -> None:
    # "  train.rounds=40  (int)", and its meaning on the more deeply indented lines below
    entries = re.findall(rf"^  {re.escape(key)}=(.*?)  \(.+\)\n((?: {{6,}}\S.*\n?)+)", help_text(OPTIONS), re.M)
    assert str(default) in [str(yaml.safe_load(shown)) if shown else "" for shown, _ in entries]
    assert all(len(meaning.split()) >= 2 and "None" not in meaning for _, meaning in entries)


def test_help_names_every_method() -> None:
    assert all(re.search(rf"method\.name={name}\b|, {name}\b", help_text(OPTIONS)) for name in OPTIONS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_wins_over_everything_and_prints_to_stdout(flag: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["main", "no such file.yaml", "train.rounds=x", flag])
    main.main()
    out, err = capsys.readouterr()
    assert "train.rounds=" in out
    assert err == ""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_defaults_then_file_then_overrides(tmp_path) -> None:
    file = write(tmp_path / "run.yaml", "train:\n  rounds: 7\n  lr: 1e-3\nseed: 3\n")
    config = load([file, "train.rounds=9"], OPTIONS)
    assert (config.train.rounds, config.train.lr, config.seed) == (9, 0.001, 3)
    assert config.train.momentum == RunConfig.model_fields["train"].default.momentum


def test_an_override_wins_over_a_file_named_after_it(tmp_path) -> None:
    file = write(tmp_path / "run.yaml", "train:\n  rounds: 7\n")
    assert load(["train.rounds=9", file], OPTIONS).train.rounds == 9


def test_the_later_override_wins() -> None:
    assert load(["seed=1", "seed=2"], OPTIONS).seed == 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [("train.lr=1e-3", 0.001), ("train.lr=.5", 0.5), ("train.lr=1", 1.0), ("wire.timeout=60", 60.0), ("seed=0", 0)],
)
def test_numbers_as_people_write_them(argument: str, value: float) -> None:
    section, _, field = argument.partition("=")[0].rpartition(".")
    config = load([argument], OPTIONS)
    assert getattr(getattr(config, section) if section else config, field) == value


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_brings_its_own_options(name: str) -> None:
    config = load([f"method.name={name}"], OPTIONS)
    assert type(config.method) is OPTIONS[name]


def test_an_empty_file_is_all_defaults(tmp_path) -> None:
    assert load([write(tmp_path / "run.yaml", "# nothing yet\n")], OPTIONS) == load([], OPTIONS)


TEXTS = ["plain", "true", "no", "a~", "12", "1.5", "1e3", "0x1f", "2026-01-31", "1:30", "a: b", "# x", "two words", "é"]


@pytest.mark.parametrize("option", ["run.dir", "sweep.dir"])
def test_a_folder_may_begin_with_the_users_own(option: str, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    section = option.partition(".")[0]
    assert getattr(load([f"{option}=~/mine"], OPTIONS), section).dir == "/home/me/mine"


@pytest.mark.parametrize("value", ["!!int abc", "!!float x", "!!timestamp 2001-99-99", "9" * 5000, "[" * 3000])
def test_what_yaml_cannot_make_a_value_of_is_one_message(value: str, tmp_path) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        load([f"train.lr={value}"], OPTIONS)
    with pytest.raises(UserError, match="not valid YAML"):
        load([write(tmp_path / "run.yaml", f"seed: {value}\n")], OPTIONS)


def test_an_option_of_one_method_does_not_replace_a_list_of_them() -> None:
    with pytest.raises(UserError, match=r"method\.mean=plain: method is a list here, of 2.*method\.name before it"):
        read_values(["method=[fedavg,fedbsd]", "method.mean=plain"])
    assert read_values(["method=[fedavg,fedbsd]", "method.name=fedper"])["method"] == {"name": "fedper"}


@pytest.mark.parametrize("text", TEXTS)
def test_text_reads_back_from_config_yaml_as_text(text: str, tmp_path) -> None:
    config = load([f"run.dir='{text}'"], OPTIONS)
    assert load([write(tmp_path / "config.yaml", config.to_yaml())], OPTIONS).run.dir == text


@pytest.mark.parametrize(
    "arguments",
    [[f"method.name={name}"] for name in OPTIONS]
    + [["train.lr=1e-5", "train.weight_decay=0", "wire.sum=exact"], ["data.alpha=1e6", "wire.timeout=5"]],
    ids=" ".join,
)
def test_a_resolved_configuration_reads_back_to_the_same(arguments: list[str], tmp_path) -> None:
    config = load(arguments, OPTIONS)
    again = load([write(tmp_path / "config.yaml", config.to_yaml())], OPTIONS)
    # as text too: 1800 and 1800.0 are equal, but a file that tells them apart would not be the same run's
    assert again == config
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("train.round=3", "train.rounds"),
        ("train.batchsize=3", "train.batch_size"),
        ("trian.lr=1", "train.lr"),
        ("rounds=3", "train.rounds"),
        ("data.clients=3", "data.num_clients"),
        ("sed=3", "seed"),
        ("method.distilation=features_kl", "method.distillation"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(argument: str, nearest: str) -> None:
    with pytest.raises(UserError) as refusal:
        load([argument], OPTIONS)
    message = str(refusal.value)
    assert argument.partition("=")[0].split(".")[0] in message
    assert "unknown" in message
    assert nearest in message


def test_another_methods_option_is_not_called_unknown_and_suggested_at_once() -> None:
    with pytest.raises(UserError, match=r"method\.temperature") as refusal:
        load(["method.name=fedavg", "method.temperature=2"], OPTIONS)
    assert "Did you mean method.temperature" not in str(refusal.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UserError) as refusal:
        load(["train.rounds=0", "data.num_clients=x", "evaluate.evry=1"], OPTIONS)
    assert all(key in str(refusal.value) for key in ("train.rounds", "data.num_clients", "evaluate.every"))


def test_a_list_is_read_from_a_file_and_from_the_command_line(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text("data: {classes: [no, b, '3']}\n")
    assert load([str(tmp_path / "c.yaml")], OPTIONS).data.classes == ["no", "b", "3"]
    assert load(["data.classes=[a, y, on]"], OPTIONS).data.classes == ["a", "y", "on"]
    with pytest.raises(UserError, match=r"data\.classes"):
        load(["data.classes=bird"], OPTIONS)
    with pytest.raises(UserError, match=r"data\.classes"):
        load(["data.classes=[1.5]"], OPTIONS)
    assert load(["data.classes=[3, 1, '007']"], OPTIONS).data.classes == ["3", "1", "007"]


def test_a_layer_may_be_called_by_its_number() -> None:
    assert load(["model.head_from=1"], OPTIONS).model.head_from == "1"
