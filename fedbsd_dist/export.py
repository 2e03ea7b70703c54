"""A client's personal model out of a finished run: `python -m fedbsd_dist.export RUN --client=3`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fedbsd_dist import environment
from fedbsd_dist.command import flags, start, whole_number
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import personal
from fedbsd_dist.record.finished import open_finished

USAGE = """usage: python -m fedbsd_dist.export RUN --client=K [--out=FILE]

Saves the personal model of client K of a finished run, the one that was tested at stage `received`: a state dict
(tensors by name) that loads into the network itself. RUN is the run's directory; its data is not needed.

Written, readable by you alone, for it holds the client's private state:
  FILE        the state dict; RUN/export/client-00000K.pt, unless named
  FILE.json   method, client, round, model, shape, classes, mean and std
Printed: a few lines of Python that load it.

python -m fedbsd_dist.export runs/mine --client=3"""


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    start(USAGE, export)


def export(arguments: Sequence[str]) -> str:
    """Write the files; what to print."""
    given, runs = flags(arguments, ("client", "out"))
    if len(runs) != 1 or "client" not in given:
        raise UserError("Name one run directory, and --client=K. --help says more.")
    environment.check()
    client = whole_number("client", given["client"])
    run = open_finished(Path(runs[0]), [])
    if client >= run.config.data.num_clients:
        raise UserError(
            f"--client={client}: the clients that trained are 0 to {run.config.data.num_clients - 1}. "
            "For one that did not, there is python -m fedbsd_dist.adapt."
        )
    file = personal.free_file(run, given.get("out"), f"client-{client:06d}.pt")
    channels, height, width = run.input.shape
    nothing = torch.empty(0, height, width, channels, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    clients = run.clients({client: run.shard(nothing, nothing)}, torch.device("cpu"))
    clients.deployed(client, run.config.train.rounds + 1)
    example = personal.save(file, run, clients.model, client)
    lines = [f"client {client} of {run.folder}, {run.config.method.name} after round {run.config.train.rounds}: {file}"]
    if clients.method.finetunes:
        lines.append(
            f"This is the model as received. {run.config.method.name} has a step of its own at test time, which takes "
            "the client's samples and is not in it."
        )
    return "\n".join([*lines, "", example])


if __name__ == "__main__":
    main()
