"""From a command line to a RunConfig: defaults <- YAML file <- `section.field=value`; and `--help`.

Unknown keys are refused with the nearest valid one.
"""

import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args, get_origin

import yaml
from pydantic import ValidationError

from fedbsd_dist import dialect
from fedbsd_dist.config import MethodOptions, RunConfig, Section
from fedbsd_dist.errors import UserError
from fedbsd_dist.factories import resolve

UNREADABLE = (yaml.YAMLError, ValueError, KeyError, RecursionError)
"""What YAML raises of a text: the others of a tag that its value does not fit, or of numbers and lists without end."""

Methods = Mapping[str, type[MethodOptions]]


def check_flag(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """(None, or N of `--check=N`, 0 for `--check` alone; the arguments that are left)."""
    check, options = None, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != "--check":
            options.append(argument)
        elif not re.fullmatch(r"[1-9][0-9]{0,5}|", value):
            raise UserError(f"{argument}: write --check, or --check=RANKS for a launch of that many ranks.")
        else:
            check = int(value or 0)
    return check, options


def load(arguments: Sequence[str], methods: Methods) -> RunConfig:
    """The configuration of a command line `[CONFIG.yaml] [section.field=value ...]`.

    `methods` maps each `method.name` to its class of options; the first is the default.
    Raises UserError naming every key that is unknown or has an impossible value.
    """
    return resolve_values(read_values(arguments), methods)


def read_values(arguments: Sequence[str]) -> dict[str, Any]:
    """Section -> field -> value of a command line, not checked yet."""
    values: dict[str, Any] = {}
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(
                f"{argument}: no such flag. There are --help and --check[=RANKS]; options are section.field=value."
            )
    files = [argument for argument in arguments if "=" not in argument]
    for path in files:
        _merge(values, _read_file(Path(path)))
    for argument in arguments:
        if argument not in files:
            _override(values, argument)
    # an empty section in a file means its defaults
    return {key: {} if value is None and key != "seed" else value for key, value in values.items()}


def resolve_values(values: Mapping[str, Any], methods: Methods) -> RunConfig:
    """The configuration of these values; `load` says what may be wrong with them."""
    values = dict(values)
    method = values.pop("method", {})
    if isinstance(method, list):
        raise UserError(f"method={method}: several methods are a sweep, which fedbsd_dist.main does. Give one here.")
    if not isinstance(method, dict):
        raise UserError(f"method={method}: write method.name={method} instead.")
    method = dict(method)
    if method.get("factory"):
        methods = _own_method(method["factory"])
    name = method.setdefault("name", next(iter(methods)))
    if not isinstance(name, str) or name not in methods:
        raise UserError(
            f"method.name={name}: no such method.{_nearest(str(name), methods)} There are: {', '.join(methods)}."
        )
    options = _validate(methods[name], method, "method.", methods)
    config: RunConfig = _validate(RunConfig, {**values, "method": options}, "", methods)
    return config


def _own_method(path: object) -> Methods:
    """The options of the class that `method.factory` names, under the name that they have by default."""
    options = getattr(resolve(str(path), "method.factory"), "Options", None)
    if not isinstance(options, type) or not issubclass(options, MethodOptions):
        raise UserError(
            f"method.factory={path}: must be a subclass of fedbsd_dist.methods.contract.Method, and its attribute "
            "Options one of fedbsd_dist.config.MethodOptions."
        )
    name = options.model_fields["name"].default
    if not isinstance(name, str):
        raise UserError(f'method.factory={path}: its Options need a name, such as name: Literal["mine"] = "mine".')
    return {name: options}


def _validate(section: type[Any], values: Any, prefix: str, methods: Methods) -> Any:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, prefix, methods) for problem in error.errors()]
        raise UserError("\n".join(problems)) from None


def _explain(problem: Any, prefix: str, methods: Methods) -> str:
    key = prefix + ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        if isinstance(problem["input"], dict) and problem["input"]:
            key += f".{next(iter(problem['input']))}"
        owners = [name for name, options in methods.items() if key.removeprefix("method.") in options.model_fields]
        if prefix and owners:
            return f"{key}: an option of method.name={' or '.join(owners)}, not of the method chosen."
        return f"{key}: unknown option.{_nearest(key, dict(fields(methods)))} --help lists them all."
    if problem["type"] == "model_type":
        return f"{key}={problem['input']}: {key} is a section; write {key}.FIELD=VALUE."
    message = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if problem["type"] == "bool_type":
        message = "should be a boolean: true or false"
    return f"{key}={problem['input']}: {message}."


def _nearest(word: str, words: Mapping[str, Any]) -> str:
    """Also finds a right field name under a wrong section, or with none."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    if not near:
        leaves = [known.rpartition(".")[2] for known in words]
        field = difflib.get_close_matches(word.rpartition(".")[2], dict.fromkeys(leaves), n=1)
        near = [known for known, leaf in zip(words, leaves, strict=True) if leaf in field]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def fields(methods: Methods) -> list[tuple[str, Any]]:
    """(dotted key, pydantic field) of every option, every method's included."""
    found: list[tuple[str, Any]] = []
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if name == "method":
            for options in methods.values():
                found += [(f"method.{key}", option) for key, option in options.model_fields.items()]
        elif _is_section(section):
            found += [(f"{name}.{key}", option) for key, option in section.model_fields.items()]
        else:
            found.append((name, field))
    return found


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = dialect.parse(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read this configuration file: {error.strerror}.") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: expected sections such as `train:` with fields under them.")
    return values


def _override(values: dict[str, Any], argument: str) -> None:
    key, _, text = argument.partition("=")
    *sections, field = key.split(".")
    try:
        value = dialect.parse(text)
    except UNREADABLE:
        raise UserError(f"{argument}: the value is not valid YAML; quote it.") from None
    for section in sections:
        if isinstance(values.get(section), list):
            if field != "name":
                raise UserError(
                    f"{argument}: {section} is a list here, of {len(values[section])}, and this is of one. Give "
                    f"{section}.name before it, or the list anew with {field} in its elements."
                )
            values[section] = {}  # a sweep of the whole section: one of them takes its place
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"{argument}: {section} was given as a value, but it is a section.")
    values[field] = value


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def help_text(methods: Methods) -> str:
    """Every option with its type, default and meaning."""
    lines = [
        "usage: torchrun --nproc_per_node=8 -m fedbsd_dist.main [CONFIG.yaml] [section.field=value ...]",
        "       python -m fedbsd_dist.main ...   one process, server and client at once",
        "       ... method.name=[fedavg,fedbsd] seed=[0,1,2]   lists: a run of each, one after another, and a table",
        "",
        "  --help    this page",
        "  --check   validate, print the plan (ranks, clients, memory, bytes a round) and stop;",
        "            --check=8 plans for 8 ranks of this host without launching them",
    ]
    for name, field in RunConfig.model_fields.items():
        if name == "method":
            lines += ["", f"method: {MethodOptions.__doc__}", f"  method.name={next(iter(methods))}"]
            lines += [_meaning(f"The algorithm: {', '.join(methods)}.")]
            lines += _describe("method.factory", MethodOptions.model_fields["factory"])
            for method, options in methods.items():
                lines += ["", f"with method.name={method}: {options.__doc__}"]
                lines += _describe_section("method", options)
        elif _is_section(field.annotation):
            lines += ["", f"{name}: {field.annotation.__doc__}", *_describe_section(name, field.annotation)]
        else:
            lines += ["", *_describe(name, field)]
    return "\n".join(lines)


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _describe_section(name: str, section: type[Section]) -> list[str]:
    rows = [(f"{name}.{key}", field) for key, field in section.model_fields.items()]
    once = ("method.name", "method.factory")
    return [line for key, field in rows if key not in once for line in _describe(key, field)]


def _describe(key: str, field: Any) -> list[str]:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    allowed = " | ".join(map(str, choices)) if choices else getattr(field.annotation, "__name__", "")
    default = dialect.inline(field.default)
    return [f"  {key}={default}  ({allowed})", _meaning(field.description)]


def _meaning(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
