"""What a killed run goes on from: the shared state by rank 0, each client's private state by its own rank.

The state is copied, and written while the next rounds go on. The manifest comes last, after every rank has written,
with the sha256 of every file; what is newest and verifies is gone on from. Randomness is seeded by name and needs no
saving.
"""

import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.private import PrivateState
from fedbsd_dist.record.directory import CHECKPOINTS, differences, settings
from fedbsd_dist.record.files import sync, telling, write_atomically, write_new
from fedbsd_dist.record.saved import MANIFEST, SHARED, Damaged, Manifest, Tensors, client_file, folder_name, verified
from fedbsd_dist.record.whole import missing, was_last
from fedbsd_dist.wire.world import World

PRIVATE = 0o600
"""A client's state is its owner's to read."""
WRITER = "checkpoint"
"""Name of the thread that writes."""
SET_ASIDE = "damaged-"
"""Prefix of a folder that is not gone on from."""


class Checkpoints:
    """The checkpoints of one run; every rank has them, and calls alike."""

    def __init__(self, run: Path, config: RunConfig, world: World) -> None:
        """`run`: the run directory, the same files for every rank."""
        self._folder, self._config = run / CHECKPOINTS, config
        self._watch, self._world = world.watch, world.apart()
        self._writing: _Writing | None = None
        self._last, self._digests = self._folder, dict[str, str]()
        """The last checkpoint, and the files of clients that this rank has in it, with their sha256."""
        self.seconds = 0.0
        """Of saving, so far; most of them beside other work."""

    def due(self, round: int) -> bool:
        """Whether a checkpoint follows this round."""
        every = self._config.checkpoint.every
        return every > 0 and (round % every == 0 or round == self._config.train.rounds)

    def begin(self, round: int, shared: Tensors, private: PrivateState) -> None:
        """Copy what is this rank's to write, and write it while other work goes on: after the one before, and once
        the record of the round is on disk. Private state that memory may have no room for twice is written at once. A
        client that did not learn since the one before has the same file in both.

        Raises UserError where it, or the one before, cannot be written.
        """
        self.finish()
        folder = self._folder / folder_name(round)
        changed = {client_file(client) for client in private.changed}
        private.changed.clear()
        with telling(self._folder):
            folder.mkdir(parents=True, exist_ok=True)
            same = {name: sha256 for name, sha256 in self._digests.items() if name not in changed}
            there = {name: sha256 for name, sha256 in same.items() if self._link(name, folder)}
            states = {client_file(client): state for client, state in private.learned().items()}
            new = {name: state for name, state in states.items() if name not in there}
            if self._config.client.store == "mmap":
                there |= {name: _save(folder / name, _copied(state)) for name, state in new.items()}
                new = {}
        files = {name: _copied(state) for name, state in new.items()}
        if self._world.is_server:
            files[SHARED] = _copied(shared)

        def write() -> None:
            with telling(self._folder):
                self._write(round, files, there)

        self._writing = _Writing(write)
        self._writing.start()

    def goes_on(self, round: int, digests: Mapping[str, str]) -> None:
        """The run goes on from a round's checkpoint, where this rank's clients have these files, with their sha256."""
        self._last, self._digests = self._folder / folder_name(round), dict(digests)

    def finish(self) -> None:
        """Wait until the last checkpoint counts (on the server) or has been written (elsewhere). Raises UserError."""
        if self._writing:
            self._watch.at("writing the checkpoint")
            self._writing.join()
            self.check()

    def check(self) -> None:
        """Raises UserError where the checkpoint that is being written cannot be."""
        if self._writing is None or self._writing.is_alive():
            return
        error, self._writing = self._writing.error, None
        if error:
            with self._watch.meeting("writing the checkpoint"):  # where it came of the others' end
                raise error

    def _link(self, name: str, folder: Path) -> bool:
        """The last checkpoint's file of this name into `folder` as well; false where it must be written anew."""
        try:
            os.link(self._last / name, folder / name)
        except OSError:  # gone, or a file system without links
            return False
        return True

    def _write(self, round: int, files: Mapping[str, Tensors], there: Mapping[str, str]) -> None:
        """`there`: files that have been written, or are linked, with their sha256."""
        start = time.perf_counter()
        folder = self._folder / folder_name(round)
        digests = {**there, **{name: _save(folder / name, state) for name, state in files.items()}}
        for name in digests:  # all together, for one by one each would wait for the disk
            sync(folder / name)
        sync(folder)
        self._last, self._digests = folder, {name: sha256 for name, sha256 in digests.items() if name != SHARED}
        parts = self._world.collected(f"checkpoint {round}", json.dumps(digests))
        if self._world.is_server:
            self._commit(round, {name: sha256 for part in parts for name, sha256 in json.loads(part).items()}, start)
        self.seconds += time.perf_counter() - start

    def _commit(self, round: int, digests: Mapping[str, str], start: float) -> None:
        """The server makes the checkpoint count: every rank has written, and the record is on disk."""
        manifest = Manifest(
            round=round,
            world_size=self._world.size,
            server_trains=self._config.server.trains,
            settings=settings(self._config),
            seconds=time.perf_counter() - start,
            files=dict(sorted(digests.items())),
        )
        manifest.own_sha256 = manifest.digest()
        folder = self._folder / folder_name(round)
        write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        self._delete_older(round)

    def _delete_older(self, round: int) -> None:
        """But for as many as are kept beside that of this round."""
        older = [folder for folder in self._folders() if folder.name < folder_name(round)]
        for folder in older[: max(0, len(older) - self._config.checkpoint.keep + 1)]:
            shutil.rmtree(folder)

    def newest(self) -> int:
        """The newest round whose checkpoint verifies, 0 when there is none. Says what is wrong with each newer one.

        Raises UserError when that checkpoint is of other settings, or of another number of ranks without
        `run.rehost`, or when there are checkpoints and none is as it was written.
        """
        damaged = []
        for folder in reversed(self._folders()):
            if not (folder / MANIFEST).exists():
                continue  # it was being written when the run ended
            try:
                manifest = verified(folder)
                if lack := missing(self._folder.parent, manifest.round):
                    raise Damaged(lack)
            except Damaged as damage:
                damaged.append(f"{folder} is damaged: {damage}.")
            else:
                self._check(folder, manifest)
                for problem in damaged:
                    self._world.complain(f"{problem} The run goes on from an older one, after round {manifest.round}.")
                return manifest.round
        if damaged:
            told = "\n".join(damaged)
            raise UserError(
                f"run.resume=auto: no checkpoint is left to go on from.\n{told}\nBring back the files, or start again "
                "with run.overwrite=true or another run.dir."
            )
        return 0

    def _check(self, folder: Path, manifest: Manifest) -> None:
        config, head = self._config, f"run.resume=auto: {folder}"
        differing = differences(manifest.settings, settings(config))
        if differing:
            raise UserError(f"{head} is of other settings: {differing}. Give the same ones, or choose another run.dir.")
        ended = was_last(self._folder.parent, manifest.round)
        if manifest.round > config.train.rounds or (manifest.round == config.train.rounds and not ended):
            is_there = "further" if manifest.round > config.train.rounds else "there, without the tests of a last round"
            raise UserError(
                f"train.rounds={config.train.rounds}: {folder} is already {is_there}. Use "
                f"train.rounds={manifest.round + (not ended)} or more."
            )
        hosting = (manifest.world_size, manifest.server_trains)
        if hosting != (self._world.size, config.server.trains) and not config.run.rehost:
            raise UserError(
                f"{head} is of {manifest.world_size} ranks (server.trains={str(manifest.server_trains).lower()}), this "
                f"launch has {self._world.size} ({str(config.server.trains).lower()}). With run.rehost=true it goes "
                "on: clients' private state then moves to other ranks through the run directory."
            )

    def tidy(self, resumed: int) -> None:
        """Newer checkpoints than round `resumed` are not gone on from: what was only begun is deleted, and what is
        damaged is kept under another name. Of older ones those are deleted that a run has left, which ended before it
        had done so. Raises UserError where they cannot be.
        """
        with telling(self._folder):
            for folder in self._folders():
                if folder.name > folder_name(resumed):
                    aside = folder.with_name(SET_ASIDE + folder.name)
                    shutil.rmtree(aside, ignore_errors=True)
                    if (folder / MANIFEST).exists():
                        folder.rename(aside)
                    else:
                        shutil.rmtree(folder)
            self._delete_older(resumed)

    def _folders(self) -> list[Path]:
        return sorted(self._folder.glob("round-*"))


class _Writing(threading.Thread):
    """Work beside the main thread; at the end of the process it is not waited for."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name=WRITER, daemon=True)
        self._work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        """The work, whose exception is kept."""
        try:
            self._work()
        except BaseException as error:
            self.error = error


def _copied(tensors: Tensors) -> Tensors:
    """On the host, whatever happens to `tensors` next, and without other clients' storage."""
    return {group: tensor.to("cpu", copy=True) for group, tensor in tensors.items()}


def _save(path: Path, tensors: Tensors) -> str:
    """The file's sha256."""
    file = io.BytesIO()
    torch.save(tensors, file)
    write_new(path, file.getvalue(), PRIVATE)
    return hashlib.sha256(file.getvalue()).hexdigest()
