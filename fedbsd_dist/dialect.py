"""YAML as people mean it: YAML 1.2's plain scalars, so 1e-3 is a number and `no` and 2026-01-31 are text."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key given twice, of which YAML would keep the last in silence."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse(text: str) -> Any:
    """Plain values only, as yaml.safe_load. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def write(values: Any, *, flow: bool = False) -> str:
    """Text that `parse` reads back to the same; `flow`: on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow)


def inline(value: Any) -> str:
    """A value as it stands behind `option=`."""
    return write(value, flow=True).removesuffix("...\n").strip()
