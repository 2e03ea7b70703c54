"""Do the installed packages fit together? Told in one line, before an import fails in ten."""

import re
from importlib import metadata

from fedbsd_dist.errors import UserError


def check() -> None:
    """Raises UserError for a torch and a torchvision that were not built for each other.

    Reads the packages' metadata alone: importing torchvision costs seconds, and would fail.
    """
    try:
        torchvision, needs = metadata.version("torchvision"), metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return
    torch = metadata.version("torch")
    wanted = next((match[1] for match in map(re.compile(r"torch\s*\(?==\s*([\w.]+)").match, needs) if match), None)
    release, _, build = torch.partition("+")
    # a CPU-only torch beside a torchvision built for CUDA lacks operators that torchvision registers
    other_build = ("cpu" in (build, torchvision.partition("+")[2])) and build != torchvision.partition("+")[2]
    if other_build or wanted not in (None, release):
        raise UserError(
            f"torch {torch} and torchvision {torchvision} do not fit together"
            + (
                f" (that torchvision needs torch {wanted})"
                if wanted not in (None, release)
                else " (one is a CPU-only build)"
            )
            + ". Install both in one command: pip install --upgrade torch torchvision"
        )
