"""What the program finds around it: do the installed packages fit together, and can its output say every name?"""

import hashlib
import sys
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path

from packaging.requirements import Requirement

from fedbsd_dist.errors import UserError


def check() -> None:
    """Raises UserError for a torch and a torchvision that were not built for each other.

    Told in one line, before an import fails in ten.
    Reads the packages' metadata alone: importing torchvision costs seconds, and would fail.
    """
    try:
        torchvision, needs = metadata.version("torchvision"), metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return
    torch = metadata.version("torch")
    wanted = next((str(need.specifier) for need in map(Requirement, needs) if need.name == "torch"), "")
    if not Requirement(f"torch{wanted}").specifier.contains(torch, prereleases=True):
        reason = f"that torchvision needs torch{wanted}"
    elif _cpu_only(torch) != _cpu_only(torchvision):
        # the operators that one registers are missing in the other
        reason = f"{'torch' if _cpu_only(torch) else 'torchvision'} alone is a CPU-only build"
    else:
        return
    raise UserError(
        f"torch {torch} and torchvision {torchvision} do not fit together: {reason}. "
        "Install both in one command: pip install --upgrade --force-reinstall torch torchvision"
    )


def code_sha256() -> str:
    """Of all source files of this package: which version of it this is."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def print_any_name() -> None:
    """Have stdout escape what its encoding has not, as stderr always does: terminals may be ASCII, paths any bytes."""
    if isinstance(sys.stdout, TextIOWrapper):  # not so where somebody has replaced it
        sys.stdout.reconfigure(errors="backslashreplace")


def _cpu_only(version: str) -> bool:
    return version.endswith("+cpu")
