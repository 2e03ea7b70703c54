"""A personal model as a file of its own, for use without this package."""

import io
import json
import os
from pathlib import Path

import torch

from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.record.checkpoint import PRIVATE
from fedbsd_dist.record.files import write_atomically
from fedbsd_dist.record.finished import Finished

FOLDER = "export"
"""Beside a run's own files: what was taken out of it stays, whatever becomes of the run."""

EXAMPLE = """import json
from pathlib import Path

import torch
{imports}

facts = json.loads(Path({facts!r}).read_text())
network = {network}(tuple(facts["shape"]), len(facts["classes"])).eval()
network.load_state_dict(torch.load({file!r}, weights_only=True))
mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
images = torch.zeros(2, *facts["shape"], dtype=torch.uint8)  # yours: [n, channels, height, width], 0 to 255
with torch.no_grad():
    logits = network((images / 255 - mean) / std)
print([facts["classes"][number] for number in logits.argmax(1)])"""


def free_file(run: Finished, chosen: str | None, name: str) -> Path:
    """The file `chosen`, or else the run's own of this name. Raises UserError where something is, or no file can be."""
    file = Path(os.path.expanduser(chosen)) if chosen else run.folder / FOLDER / name
    for path in (file, _facts_of(file)):
        try:
            taken = path.exists() or path.is_symlink()
            nearest = next(parent for parent in path.absolute().parents if parent.exists())
        except OSError as error:
            raise _refused(file, error) from None
        if taken:
            raise UserError(f"{path}: is already there. Choose another file with --out=FILE, or remove it.")
        if not nearest.is_dir():
            raise UserError(f"{file}: {nearest} is no folder. Choose another file with --out=FILE.")
    return file


def save(file: Path, run: Finished, model: FlatModel, client: int | None) -> str:
    """The live model as a plain state dict, by the network's own names, and beside it FILE.json: whose it is, and
    what it takes. For its owner's eyes alone. `client`: None for a new one. Returns how to load it, as Python.
    """
    content = io.BytesIO()
    torch.save(model.module.network_state(), content)
    chosen, (channels, height, width) = run.config.model, run.input.shape
    facts = {
        "method": run.config.method.name,
        "client": client,
        "round": run.config.train.rounds,
        "model": chosen.factory or chosen.name,
        "shape": [channels, height, width],
        "classes": run.input.classes,
        "mean": run.input.mean,
        "std": run.input.std,
        "normalise": f"(images / 255 - mean) / std for each channel, images [n, {channels}, {height}, {width}]",
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue(), PRIVATE)
        write_atomically(_facts_of(file), (json.dumps(facts, indent=1) + "\n").encode(), PRIVATE)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refused(file, error) from None
    if chosen.factory:
        imports, network = "from pkgutil import resolve_name", f"resolve_name({chosen.factory!r})"
    else:
        imports, network = "from fedbsd_dist.models.zoo import find_network", f"find_network({chosen.name!r})"
    return EXAMPLE.format(imports=imports, network=network, file=str(file), facts=str(_facts_of(file)))


def _facts_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _refused(file: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{str(file)!r}: cannot be written ({reason}). Choose another file with --out=FILE.")
