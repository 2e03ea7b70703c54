"""The server's record of a run; on other ranks the same calls write nothing."""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedbsd_dist.data import manifest
from fedbsd_dist.evaluation import CORRECT, COUNT, LOSS, VALIDATION, best_by_validation, last_rounds, summarize
from fedbsd_dist.federation import STATE_DIGEST, Report
from fedbsd_dist.plan import Plan
from fedbsd_dist.record import console, spending
from fedbsd_dist.record.directory import (
    CLIENTS,
    CONFIG,
    LEDGER,
    METRICS,
    PARTITION,
    PREEMPTED,
    SUMMARY,
    TENSORBOARD,
    read_lines,
    settings_sha256,
)
from fedbsd_dist.record.files import append, telling, write_atomically
from fedbsd_dist.wire.ledger import Entry
from fedbsd_dist.wire.world import World

CLIENT_COLUMNS = (
    *("round", "stage", "client", "num_train", "num_test", "accuracy", "loss"),
    *("num_val", "val_accuracy", "val_loss"),
)
"""The last three are empty where a stage is not tested on validation samples."""


class Silence:
    """The record on ranks that keep none: the same calls, nothing written, nothing said."""

    def say(self, text: str) -> None:
        """Nothing."""

    def round(self, report: Report, entries: Sequence[Entry]) -> None:
        """Nothing."""

    def ledger(self, entries: Sequence[Entry]) -> None:
        """Nothing."""

    def finish(self, state_sha256: str, checkpoint_seconds: float) -> None:
        """Nothing."""

    def stopped(self, round: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Recorder(Silence):
    """Writes metrics.jsonl, clients.csv, ledger.jsonl and summary.json, and shows them as they come."""

    def __init__(self, plan: Plan, run: Path, resumed: int) -> None:
        """`resumed`: the round to go on after; later lines are dropped."""
        self._plan, self._config, self._run = plan, plan.config, run
        self._lines = [line for line in read_lines(run / METRICS) if line["round"] <= resumed]
        self._ledger = [
            line for line in read_lines(run / LEDGER) if line["round"] <= resumed and line["purpose"] != STATE_DIGEST
        ]
        rows = csv.DictReader((run / CLIENTS).read_text().splitlines()) if (run / CLIENTS).exists() else []
        kept = [row for row in rows if None not in row.values() and int(row["round"]) <= resumed]
        write_atomically(run / METRICS, _jsonl(self._lines).encode())
        write_atomically(run / LEDGER, _jsonl(self._ledger).encode())
        write_atomically(run / CLIENTS, _csv([CLIENT_COLUMNS, *(tuple(row.values()) for row in kept)]).encode())
        divided = manifest.text(plan.partition, plan.samples, plan.config.data, plan.config.seed)
        write_atomically(run / PARTITION, divided.encode())
        write_atomically(run / CONFIG, plan.config.to_yaml().encode())
        (run / PREEMPTED).unlink(missing_ok=True)
        # imported here: half a second of start-up that only the server needs
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard = SummaryWriter(str(run / TENSORBOARD), purge_step=resumed + 1)
        self._clock = time.perf_counter()

    def say(self, text: str) -> None:
        """A line for the person watching."""
        print(text, flush=True)

    def round(self, report: Report, entries: Sequence[Entry]) -> None:
        """Record a round, with its collectives so far, and show its progress line."""
        now = time.perf_counter()
        self.ledger(entries)
        attendance, diverged = report.attendance, report.diverged
        sent = len(attendance.present)
        received = sent + len(attendance.late)
        line = {
            "round": report.round,
            "cohort": len(report.cohort),
            "faults": {
                "unavailable": attendance.unavailable,
                "late": attendance.late,
                "diverged": diverged,
            },
            **({"duration": attendance.duration} if self._config.fault.slow or self._config.fault.deadline else {}),
            "loss": report.losses,
            "accuracy": {stage: summarize(table) for stage, table in report.stages.items()},
            **({"validation": _validation(report)} if self._config.data.val_fraction else {}),
            "bytes": {
                "federated_up": sent * self._plan.upload_bytes,
                "federated_down": received * self._plan.download_bytes,
                "payload": sum(entry.payload_bytes for entry in entries),
                "wire": sum(entry.wire_bytes for entry in entries),
            },
            "seconds": {
                "total": now - self._clock,
                "training": report.training_seconds,
                "communication": sum(entry.seconds for entry in entries),
                "evaluation": report.evaluation_seconds,
                **spending.of_round(report.phases, self._plan.hosted),
            },
        }
        self._clock = now
        self._clients(report)
        self._append(METRICS, _jsonl([line]))
        self._lines.append(line)
        self._show(line)

    def ledger(self, entries: Sequence[Entry]) -> None:
        """Record collectives."""
        lines = [dataclasses.asdict(entry) for entry in entries]
        self._ledger += lines
        self._append(LEDGER, _jsonl(lines))

    def _append(self, name: str, text: str) -> None:
        with telling(self._run):
            append(self._run / name, text)

    def _clients(self, report: Report) -> None:
        train_sizes = self._plan.partition.train_sizes  # counted anew each time it is asked for
        rows = [
            (
                report.round,
                stage,
                client,
                train_sizes[client],
                *_cells(test),
                *(_cells(test[VALIDATION]) if test[VALIDATION].any() else ("", "", "")),
            )
            for stage, table in report.stages.items()
            for client, test in enumerate(table)
            if test[COUNT]
        ]
        self._append(CLIENTS, _csv(rows))

    def _show(self, line: Mapping[str, Any]) -> None:
        with telling(self._run):
            for name, value in _scalars(line):
                self._tensorboard.add_scalar(name, value, line["round"])
            self._tensorboard.flush()
        rounds = self._config.train.rounds
        recent = [past["seconds"]["total"] for past in self._lines[-10:]]
        left = (rounds - line["round"]) * sum(recent) / len(recent)
        self.say(console.progress(line, rounds, left))

    def stopped(self, round: int) -> None:
        """The run was asked to stop, and its checkpoint of the round counts."""
        with telling(self._run):
            write_atomically(self._run / PREEMPTED, f"after round {round}\n".encode())
        self.say(
            f"asked to stop: saved after round {round} of {self._config.train.rounds}; go on with "
            f"run.dir={self._run} run.resume=auto"
        )

    def finish(self, state_sha256: str, checkpoint_seconds: float) -> None:
        """Write summary.json, last, and print the closing table. `checkpoint_seconds`: of this launch's saving."""
        last = self._lines[-1]
        totals = {
            "bytes": {key: sum(line["bytes"][key] for line in self._lines) for key in last["bytes"]},
            "seconds": spending.of_run([line["seconds"] for line in self._lines]),
        }
        for key in ("payload", "wire"):
            totals["bytes"][key] = sum(line[f"{key}_bytes"] for line in self._ledger)
        totals["seconds"]["checkpoint"] = checkpoint_seconds
        model, best = self._plan.model, best_by_validation(self._lines)
        summary = {
            "method": self._config.method.name,
            "seed": self._config.seed,
            "rounds": self._config.train.rounds,
            "num_clients": self._config.data.num_clients,
            "world_size": len(self._plan.hosted),
            "device": self._plan.placement.device.type,
            "backend": self._plan.placement.backend,
            "accuracy": last["accuracy"],
            "accuracy_last_rounds": last_rounds(self._lines, self._config.evaluate.last_rounds),
            **({"best": best} if best else {}),
            **totals,
            "upload_bytes": self._plan.uploads,
            "fedavg_bytes": self._plan.model_bytes * sum(map(_exchanges, self._lines)),
            "faults": {kind: sum(len(line["faults"][kind]) for line in self._lines) for kind in last["faults"]},
            "input": dataclasses.asdict(self._plan.input),
            "parameters": {group: model.buffers[group].numel() for group in model.groups},
            "state_sha256": state_sha256,
            "settings_sha256": settings_sha256(self._config),
        }
        with telling(self._run):
            write_atomically(self._run / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        self.say("\n" + console.closing(summary, str(self._run)))

    def close(self) -> None:
        """Let go of the files, also of a run that is given up."""
        self._tensorboard.close()


def diverged_before(resumed: int, run: Path, world: World) -> dict[int, list[int]]:
    """Round -> the clients that diverged in it, up to round `resumed`: from the server's record, on every rank."""
    lines = read_lines(run / METRICS) if world.is_server else []
    found = {
        line["round"]: line["faults"]["diverged"]
        for line in lines
        if line["round"] <= resumed and line["faults"]["diverged"]
    }
    told = json.loads(world.told("diverged before", json.dumps(found)))
    return {int(round): clients for round, clients in told.items()}


def open_record(plan: Plan, run: Path, resumed: int, world: World) -> Silence:
    """The server's Recorder, or the others' Silence."""
    with telling(run):
        return Recorder(plan, run, resumed) if world.is_server else Silence()


def _exchanges(line: Mapping[str, Any]) -> int:
    """Downloads and uploads of a round."""
    received: int = line["cohort"] - len(line["faults"]["unavailable"])
    return 2 * received - len(line["faults"]["late"])


def _scalars(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    """TensorBoard's names: loss/distillation, accuracy/received_mean (of validation samples validation/received_mean),
    bytes/wire, seconds/training, seconds/phase_train, faults/late (a number of clients).
    """
    seconds = {**line["seconds"]}
    phases, server = seconds.pop("phases"), seconds.pop("server")
    seconds |= {f"phase_{name}": of for name, of in phases.items()}
    seconds |= {f"server_{name}": of for name, of in server.items()}
    parts = {"loss": line["loss"], "bytes": line["bytes"], "seconds": seconds}
    flat = [(f"{part}/{key}", value) for part, of in parts.items() for key, value in of.items()]
    flat += [(f"faults/{kind}", len(clients)) for kind, clients in line["faults"].items()]
    flat += [("faults/duration", line["duration"])] if "duration" in line else []
    return flat + [
        (f"{part}/{stage}_{key}", value)
        for part in ("accuracy", "validation")
        for stage, of in line.get(part, {}).items()
        for key, value in of.items()
    ]


def _validation(report: Report) -> dict[str, dict[str, float]]:
    """Of each stage that was tested on validation samples."""
    tables = {stage: table[:, VALIDATION] for stage, table in report.stages.items()}
    return {stage: summarize(table) for stage, table in tables.items() if table.size}


def _cells(test: np.ndarray) -> tuple[int, float, float]:
    """Number of samples, accuracy and mean loss of a client that was tested."""
    return int(test[COUNT]), test[CORRECT] / test[COUNT], test[LOSS] / test[COUNT]


def _jsonl(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
