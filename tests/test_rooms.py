"""Who may import whom: read from the source of every module, and from what an import of the program loads."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "fedbsd_dist"
SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / PACKAGE).rglob("*.py"))}

FLOORS = [
    {"main", "preview", "export", "adapt", "report", "links"},
    {"overview", "series", "command"},
    {"preflight"},
    {"sweep"},
    {"record", "pictures"},
    {"plan"},
    {"federation", "memory", "trials"},
    {"rehearsal", "testing"},
    {"clients"},
    {"together"},
    {"methods", "stacked"},
    {"client"},
    {"batches", "cohorts", "private"},
    {
        "augment",
        "commandline",
        "data",
        "environment",
        "evaluation",
        "faults",
        "models",
        "optimizer",
        "wire",
    },
    {"config", "randomness"},
    {"captured", "dialect", "factories", "host_memory", "operations", "phases", "topologies", "units"},
    {"convolution", "errors"},
]
"""Rooms, from the top of the house to the ground. An import goes down, or stays within its room."""

DOORS = {"fedbsd_dist.data.__main__": "preview", "fedbsd_dist.profile": "main"}
"""Modules that only lend their name to a command, and belong to the room that it opens."""

FORBIDDEN = {"methods": {"wire"}, "client": {"wire"}, "wire": {"config"}}
"""What the floors alone would allow."""
FILE_MODULES = {
    "os",
    "pathlib",
    "io",
    "json",
    "shutil",
    "tempfile",
    "pickle",
    "sys",
    "socket",
    "subprocess",
    "importlib",
}
FILE_NAMES = {"open", "exec", "eval", "__import__", "save", "load", "tofile", "savez", "savetxt", "write_text"}
DISTRIBUTED = "torch.distributed"


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The first name under the package: `wire` of fedbsd_dist.wire.channel; empty for the package itself."""
    return DOORS.get(module) or module.partition(".")[2].partition(".")[0]


MODULES = {module_of(path) for path in SOURCES}


def imported(tree: ast.AST, module: str) -> set[str]:
    """Dotted names of all that a source imports, at its top or inside functions; `from a import b` is a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1] if node.level else [])
            name = ".".join(filter(None, (base, node.module)))
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found


def dotted(node: ast.AST) -> str:
    """`torch.distributed` of the expression torch.distributed."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def strings(tree: ast.AST) -> Iterator[str]:
    """String literals, docstrings and other statements that are only a string left out."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def reaches_distributed(source: str, module: str = f"{PACKAGE}.x") -> bool:
    """Imports torch.distributed, reaches it as an attribute of torch, or names it to an import function."""
    tree = ast.parse(source)
    # `import torch as t; t.distributed` is refused by refusing to rename torch
    renamed = any(
        isinstance(node, ast.Import) and any(alias.name == "torch" and alias.asname for alias in node.names)
        for node in ast.walk(tree)
    )
    names = imported(tree, module) | {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return (
        renamed
        or any(f"{name}.".startswith((f"{DISTRIBUTED}.", "torch._C._distributed")) for name in names)
        or any(DISTRIBUTED in text or text == "distributed" for text in strings(tree))
    )


def touches_files(source: str, module: str = f"{PACKAGE}.x") -> set[str]:
    """What a source imports or names that could reach a file or a process."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    modules = {name.partition(".")[0] for name in imported(tree, module)}
    return (modules & FILE_MODULES) | (names & FILE_NAMES)


def targets(tree: ast.AST, module: str) -> set[str]:
    """The modules of this package that a source imports, those included that are run on the way there."""
    found = set()
    for name in imported(tree, module) & MODULES:
        parts = name.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    # a package is on the way to its own modules, always
    own = {".".join(module.split(".")[:end]) for end in range(1, len(module.split(".")) + 1)}
    return found - own


GRAPH = {module_of(path): targets(ast.parse(source), module_of(path)) for path, source in SOURCES.items()}


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed",
        "import torch.distributed as dist",
        "import torch.distributed.rpc",
        "from torch import distributed",
        "from torch import nn, distributed as d",
        "from torch.distributed import all_reduce",
        "def f():\n    from torch.distributed.nn import functional",
        "import torch\ntorch.distributed.all_reduce(x)",
        "import torch as t\nt.distributed.all_reduce(x)",
        "import importlib\nimportlib.import_module('torch.distributed')",
        "import torch\ngetattr(torch, 'distributed')",
        "from torch._C._distributed_c10d import ProcessGroup",
        "import torch\ntorch._C._distributed_c10d.ProcessGroup",
    ],
)
def test_every_spelling_of_torch_distributed_is_seen(source):
    assert reaches_distributed(source)


def test_speaking_of_torch_distributed_is_no_import():
    assert not reaches_distributed(
        '"""Not torch.distributed."""\nimport torch\nfrom torch import nn\nx = torch.ones(1)'
    )


@pytest.mark.parametrize(
    "source",
    ["import os.path", "from pathlib import Path", "with open(x) as f: pass", "torch.save(x, y)", "a.tofile('x')"],
)
def test_file_access_is_seen(source):
    assert touches_files(source)


def test_only_the_wire_reaches_torch_distributed():
    reaching = {room_of(module_of(path)) for path, source in SOURCES.items() if reaches_distributed(source)}
    assert reaching == {"wire"}


def test_methods_touch_no_file():
    methods = {path: touches_files(source) for path, source in SOURCES.items() if room_of(module_of(path)) == "methods"}
    assert len(methods) >= 4
    assert not {path: found for path, found in methods.items() if found}


def test_config_imports_no_torch_nor_does_what_it_imports():
    modules = {f"{PACKAGE}.config"}
    while more := set().union(*(GRAPH[module] for module in modules)) - modules:
        modules |= more
    sources = {module_of(path): source for path, source in SOURCES.items()}
    for module in modules:
        names = {name.partition(".")[0] for name in imported(ast.parse(sources[module]), module)}
        assert not names & {"torch", "numpy"}, module


@pytest.mark.parametrize(("room", "forbidden"), FORBIDDEN.items())
def test_a_room_does_not_know(room, forbidden):
    edges = {(module, target) for module, found in GRAPH.items() for target in found if room_of(module) == room}
    assert room in {room_of(module) for module in MODULES}
    assert not {(module, target) for module, target in edges if room_of(target) in forbidden}


def test_imports_run_downward():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert {room_of(module) for module in MODULES} - {""} == floor.keys()
    upward = {
        (module, target)
        for module, found in GRAPH.items()
        for target in found
        if room_of(target) and room_of(module) != room_of(target) and floor[room_of(module)] >= floor[room_of(target)]
    }
    assert not upward


def test_no_import_cycles():
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError
    assert set(order) == MODULES
    within = [found for module, found in GRAPH.items() if module not in DOORS]
    assert not set().union(*within) & {f"{PACKAGE}.main", *DOORS}  # nobody imports what only starts


def test_a_door_only_opens():
    for door, room in DOORS.items():
        assert {room_of(target) for target in GRAPH[door]} == {room}


PROBE = """
import sys, threading
import fedbsd_dist.main, fedbsd_dist.preview, fedbsd_dist.report, fedbsd_dist.export, fedbsd_dist.adapt
import fedbsd_dist.links
import fedbsd_dist.data.__main__
import torch
print(__import__("json").dumps({
    "modules": sorted(sys.modules),
    "group": torch.distributed.is_initialized(),
    "cuda": torch.cuda.is_initialized(),
    "threads": threading.active_count(),
}))
"""


def test_importing_the_program_loads_nothing_heavy_and_starts_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    state = json.loads(done.stdout)  # and nothing else was printed
    heavy = ("torchvision", "tensorboard", "torch.utils.tensorboard", "torch._dynamo", "torch._inductor")
    heavy += ("matplotlib", "scipy")
    loaded = [name for name in state["modules"] if f"{name}.".startswith(tuple(f"{module}." for module in heavy))]
    assert loaded == []
    assert (state["group"], state["cuda"], state["threads"]) == (False, False, 1)
