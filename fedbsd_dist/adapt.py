"""One's own new client from a finished run: `python -m fedbsd_dist.adapt RUN --data=FOLDER`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedbsd_dist import environment
from fedbsd_dist.command import flags, fraction, start, whole_number
from fedbsd_dist.data.alone import load_alone, split
from fedbsd_dist.data.samples import Ints, Samples
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import personal
from fedbsd_dist.record.finished import Finished, open_finished
from fedbsd_dist.wire.world import meet

TAKEN = ("run.device", "run.threads", "data.cache")
"""Options that need not be as the run had them: they say where the work is done."""

USAGE = f"""usage: python -m fedbsd_dist.adapt RUN --data=PATH [--epochs=N] [--test-fraction=F] [--out=FILE] [options]

A personal model for a new client, from a finished run: the newest shared state, the private state that all began with,
and N epochs of the head on the client's own samples, as at stage `new_client`. Other clients' files are not read.

  RUN               the run's directory; the run's data is not needed
  --data            [train|test/]CLASS/IMAGE, as a folder or a .tar or .zip archive, or NAME.npz with x and y; classes
                    go by the names that the run has for them, and some may be missing
  --epochs          the run's evaluate.head_epochs, unless given
  --test-fraction   of the samples, to test on: a quarter, unless given or split already (train/ and test/)
  --out             RUN/{personal.FOLDER}/new-client.pt, unless named; beside it FILE.json
  options           {", ".join(f"{name}=..." for name in TAKEN)}

python -m fedbsd_dist.adapt runs/mine --data=~/photos
python -m fedbsd_dist.adapt runs/mine --data=mine.npz --epochs=50 --out=mine.pt run.device=cpu"""


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    start(USAGE, adapt)


def adapt(arguments: Sequence[str]) -> str:
    """Write the files; what to print."""
    given, rest = flags(arguments, ("data", "epochs", "test-fraction", "out"))
    run, options = rest[:1], rest[1:]
    if not run or "data" not in given:
        raise UserError("Name a run directory, and --data=PATH. --help says more.")
    for option in options:
        if option.partition("=")[0] not in TAKEN:
            raise UserError(f"{option}: stays as the run had it. What can be set is {', '.join(TAKEN)}.")
    environment.check()
    return _adapt(open_finished(Path(run[0]), options), given)


def _adapt(run: Finished, given: dict[str, str]) -> str:
    config = run.config
    file = personal.free_file(run, given.get("out"), "new-client.pt")
    epochs = whole_number("epochs", given["epochs"]) if "epochs" in given else config.evaluate.head_epochs
    held_out = fraction("test-fraction", given["test-fraction"], 0.9, 0.25) if "test-fraction" in given else None
    torch.set_num_threads(config.run.threads)
    device = meet().place(config.run.device).device
    shards: dict[int, Shard] = {}
    clients = run.clients(shards, device)  # before images are decoded, which may take long

    samples = load_alone(given["data"], config.data.cache, run.input.shape, run.input.classes)
    train, test = split(samples, held_out, config.seed)
    client = config.data.num_clients  # the first number that nobody who trains has
    shards[client] = run.shard(_tensors(samples, train, device), _tensors(samples, test, device))
    if clients.model.has_batch_norm and len(train) == 1:
        raise UserError(f"{samples.name}: has 1 sample to learn from, and the model's batch norm needs 2. Add some.")
    lines = [_about(run, samples, train, test), "", "epochs of the head   right on its own test samples"]
    for number in steps(epochs):
        correct, count, _ = clients.head_tuned(client, config.train.rounds + 1, number).test().tolist()
        lines.append(f"{number:18}   {100 * correct / count:5.1f} %  ({correct:.0f} of {count:.0f})")
    example = personal.save(file, run, clients.model, None)
    return "\n".join([*lines, "", f"saved, after {epochs} epochs: {file}", "", example])


def steps(epochs: int) -> list[int]:
    """0, 1, 2, 5, 10, 20, 50, ... and `epochs`."""
    numbers = [digit * 10**power for power in range(len(str(epochs))) for digit in (1, 2, 5)]
    return [0, *(number for number in numbers if number < epochs), *([epochs] if epochs else [])]


def _about(run: Finished, samples: Samples, train: Ints, test: Ints) -> str:
    learned = [samples.classes[label] for label in np.unique(samples.y[train])]
    return (
        f"{run.folder}: {run.config.method.name} after round {run.config.train.rounds}\n"
        f"{samples.name}: {len(train)} samples to learn from and {len(test)} to test on, "
        f"of {len(learned)} classes: {', '.join(learned)}"
    )


def _tensors(samples: Samples, rows: Ints, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = (torch.from_numpy(np.ascontiguousarray(array[rows])) for array in (samples.x, samples.y))
    return images.to(device), labels.to(device)


if __name__ == "__main__":
    main()
