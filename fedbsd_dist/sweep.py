"""Several runs in one launch: `seed=[0,1,2] method.name=[fedavg,fedbsd]` is the product of the lists.

A list where an option takes one value is an axis. For the whole section `method` an element is a name, or a mapping
of what goes with the method: its own options, and others by their dotted name, which go before those given for all.
A list in it is a grid of that method alone: `method=[fedavg, {name: ditto, lam: [0.1, 1.0], train.lr: 0.05}]`. Later
axes change faster.
"""

import copy
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from fedbsd_dist.commandline import Methods, read_values, resolve_values
from fedbsd_dist.config import RunConfig, Section
from fedbsd_dist.errors import UserError
from fedbsd_dist.record.profiled import BASELINE

AUTO = "auto"
LONGEST = 100
"""Characters of a run's name; a longer one is cut and gets a digest."""
OF_THE_LAUNCH = ("run", "sweep")
"""Sections whose options are the same for all runs of a launch."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder in `sweep.dir`; empty for a run that is no sweep's."""
    config: RunConfig


def expand(arguments: Sequence[str], methods: Methods) -> list[Point]:
    """The runs of a command line: one without a name, or those of a sweep, all slices together.

    Raises UserError as `commandline.load` does, for each of them, and for a sweep that cannot be one.
    """
    values = _profiled(read_values(arguments), methods)
    if isinstance(values.get("method"), list):
        values["method"] = [point for element in values["method"] for point in _grid(element)]
    axes = list(_axes(values))
    _check_once(axes)
    if not axes:
        config = resolve_values(values, methods)
        if config.sweep != type(config.sweep)():
            raise UserError("sweep.dir, sweep.slice: no option is given a list, so there is nothing to sweep.")
        return [Point(name="", config=config)]
    points = []
    for chosen in itertools.product(*(choices for _, choices in axes)):
        at = copy.deepcopy(values)
        for (path, _), value in zip(axes, chosen, strict=True):
            _set(at, path, value)
        name = _name([(path, value) for (path, _), value in zip(axes, chosen, strict=True)])
        try:
            points.append(Point(name=name, config=resolve_values(at, methods)))
        except UserError as error:
            raise UserError(f"the run {name} of this sweep: {error}") from None
    _check(points)
    return points


def part_of(points: Sequence[Point]) -> list[Point]:
    """The slice that `sweep.slice` asks for."""
    part, parts = map(int, points[0].config.sweep.slice.split("/"))
    return list(points[part::parts])


def placed(point: Point, folder: str) -> RunConfig:
    """The configuration of the run in its own directory below `folder`: it goes on with what is there, and read back
    it is that run alone, with the counters that a profile has.
    """
    config = point.config
    resume = "never" if config.run.overwrite else "auto"
    run = config.run.model_copy(update={"dir": f"{folder}/{point.name}", "resume": resume})
    counters = config.profile.counters or config.profile.comm
    profile = config.profile.model_copy(update={"comm": False, "counters": counters})
    return config.model_copy(update={"run": run, "profile": profile, "sweep": type(config.sweep)()})


def _profiled(values: dict[str, Any], methods: Methods) -> dict[str, Any]:
    """A profile of the communication is a sweep over methods, FedAvg among them, in the folder `run.dir`."""
    profile, method = values.get("profile"), values.get("method", {})
    if not isinstance(profile, dict) or profile.get("comm") is not True or not isinstance(method, (dict, list)):
        return values  # what is wrong is told later
    fedavg: dict[str, Any] = {"name": BASELINE}
    if isinstance(method, dict):
        own = {key: value for key, value in method.items() if key != "name"}
        name = method.get("name", None if "factory" in own else next(iter(methods)))
        names = name if isinstance(name, list) else [name]
        fedavg |= {key: value for key, value in own.items() if key == "mean"}
        method = [{**({"name": name} if name is not None else {}), **own} for name in names]
    if not any(_is_fedavg(choice) for choice in method):
        method = [fedavg, *method]
    run, sweep = values.get("run", {}), values.get("sweep", {})
    if isinstance(run, dict) and isinstance(sweep, dict) and "dir" in run and "dir" not in sweep:
        values |= {"run": {**run, "dir": AUTO}, "sweep": {**sweep, "dir": run["dir"]}}
    return {**values, "method": method}


def _is_fedavg(choice: Any) -> bool:
    """And with all else as it is given for all."""
    if not isinstance(choice, Mapping):
        return bool(choice == BASELINE)
    return choice.get("name") == BASELINE and not any("." in str(key) for key in choice)


def _axes(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            for field, choices in value.items():
                if isinstance(choices, list) and (not _takes_list(key, field) or _all_lists(choices)):
                    yield (key, field), _checked(f"{key}.{field}", choices)
        elif isinstance(value, list):
            yield (key,), _checked(key, value)


def _grid(element: Any) -> Iterator[Any]:
    """An element of the axis `method`, or where it has lists, an element of each of their products."""
    if not isinstance(element, Mapping):
        yield element
        return
    lists = {key: _checked(f"method.{key}", of) for key, of in element.items() if isinstance(of, list)}
    for chosen in itertools.product(*lists.values()):
        yield {**element, **dict(zip(lists, chosen, strict=True))}


def _check_once(axes: Sequence[tuple[tuple[str, ...], list[Any]]]) -> None:
    """Raises UserError for an option that goes with a method and is an axis of its own, or is one of the launch's."""
    others = {".".join(path) for path, _ in axes}
    for path, choices in axes:
        if path != ("method",):
            continue
        for key in (key for element in choices if isinstance(element, Mapping) for key in element):
            if key in others:
                raise UserError(f"{key} is given a list, and goes with a method too: method={choices}. Choose one.")
            if str(key).partition(".")[0] in OF_THE_LAUNCH:
                raise UserError(f"{key} goes with a method, but is the same for all runs of a launch.")


def _takes_list(section: str, field: str) -> bool:
    """Whether the option's one value is a list."""
    known = RunConfig.model_fields.get(section)
    options = known.annotation if known else None
    if not isinstance(options, type) or not issubclass(options, Section) or field not in options.model_fields:
        return False
    return get_origin(options.model_fields[field].annotation) is list


def _all_lists(choices: list[Any]) -> bool:
    return bool(choices) and all(isinstance(choice, list) for choice in choices)


def _checked(key: str, choices: list[Any]) -> list[Any]:
    section = key.partition(".")[0]
    if not choices:
        raise UserError(f"{key}=[]: an empty list; give the values to run, or leave it out.")
    if section in OF_THE_LAUNCH:
        raise UserError(f"{key}={choices}: is the same for all runs of a launch. Give one value.")
    if "." not in key and key not in ("seed", "method"):
        raise UserError(f"{key}={choices}: {key} is a section; sweep its fields, {key}.FIELD=[VALUE,VALUE].")
    return choices


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    if path == ("method",):
        given = value if isinstance(value, dict) else {"name": value}
        value = {key: of for key, of in given.items() if "." not in str(key)}
        for key in given.keys() - value.keys():
            section, _, field = key.partition(".")
            if not isinstance(values.setdefault(section, {}), dict):
                raise UserError(f"{key} goes with a method, but {section} is no section.")
            values[section][field] = given[key]
    if len(path) == 1:
        values[path[0]] = value
    else:
        values[path[0]][path[1]] = value


def _name(chosen: Sequence[tuple[tuple[str, ...], Any]]) -> str:
    """The method first, the seed last, whatever the order of the axes."""
    parts = []
    for path, value in sorted(chosen, key=lambda axis: (axis[0][0] == "seed") - (axis[0][0] == "method")):
        if path[0] == "method" and path[-1] in ("method", "name"):
            options = dict(value) if isinstance(value, Mapping) else {"name": value}
            parts.append("-".join([str(options.pop("name", "")), *(f"{key}{of}" for key, of in options.items())]))
        else:
            parts.append(f"{path[-1]}{value}")
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", "_".join(parts)).strip(".-")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _check(points: Sequence[Point]) -> None:
    first = points[0].config
    if first.run.dir != "auto":
        raise UserError(f"run.dir={first.run.dir}: the runs of a sweep have a folder each. Set sweep.dir instead.")
    part, parts = map(int, first.sweep.slice.split("/"))
    if part >= parts:
        raise UserError(
            f"sweep.slice={first.sweep.slice}: slices are counted from 0, so 0/{parts} to {parts - 1}/{parts}."
        )
    if parts > 1 and first.sweep.dir == "auto":
        raise UserError(f"sweep.slice={first.sweep.slice}: name the folder that all slices share, sweep.dir=FOLDER.")
    seen: dict[str, Point] = {}
    for point in points:
        if not point.name:  # it would be in the folder of the others
            raise UserError("a run of this sweep has no name: say which method an empty element of a list stands for.")
        if point.name in seen:
            raise UserError(f"two runs of this sweep would be called {point.name}; give every value once.")
        seen[point.name] = point
