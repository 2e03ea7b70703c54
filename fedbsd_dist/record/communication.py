"""The profile of the communication: what methods exchange against FedAvg, as a table, Markdown, JSON and a picture."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedbsd_dist.record import charts, compare, curves, page, reading
from fedbsd_dist.record.charts import Picture
from fedbsd_dist.record.console import table
from fedbsd_dist.record.curves import HEAD, RECEIVED
from fedbsd_dist.record.exchange import Round
from fedbsd_dist.record.files import telling, write_atomically
from fedbsd_dist.record.page import Rows, Section
from fedbsd_dist.record.profiled import BASELINE, SHARE, Profiled, load
from fedbsd_dist.record.reading import Problem
from fedbsd_dist.units import size

MARKDOWN, JSON, PICTURE = "communication.md", "communication.json", "communication.svg"
TITLE = "What crosses, and what it saves"
SHOWN = "Federated bytes by group of parameters, and accuracy against them"
NEXT_TO_NOTHING = 0.01
"""A fraction of FedAvg's bytes, saved or more, below which that is what it is called."""
MUCH = 0.05
"""A fraction of the ring's bytes, counted beside them."""
NONE = "-"


def report(folder: Path, runs: Sequence[Path], target: float) -> str:
    """Write the three files into `folder`, and return what to print. `target`: an accuracy; 0: SHARE of FedAvg's.

    Raises UserError where no run is finished, or the files cannot be written.
    """
    profiled, problems = load(runs)
    sections = _sections(profiled, problems, target)
    lead = [verdict(one) for one in profiled if one.group.method != BASELINE]
    markdown = page.as_markdown(TITLE, lead, sections) + f"\n![{SHOWN}]({PICTURE})\n"
    with telling(folder):
        write_atomically(folder / MARKDOWN, markdown.encode())
        write_atomically(folder / JSON, (json.dumps(_as_json(profiled, target), indent=1) + "\n").encode())
        write_atomically(folder / PICTURE, _picture(profiled, target).light)
    told = [f"{section.title}\n{table(section.table)}" for section in sections if section.table and not section.folded]
    written = ", ".join(str(folder / name) for name in (MARKDOWN, JSON, PICTURE))
    return "\n\n".join([*told, "\n".join(lead), *reading.told(problems), f"written: {written}"])


def verdict(one: Profiled) -> str:
    """What the method's bytes are to FedAvg's, whichever way it goes, and its head's part in that."""
    share = one.of_fedavg
    if share is None:
        return f"{one.label}: there is no run of {BASELINE} with the same settings, or nothing of it crossed."
    much = f"{abs(100 * (share - 1)):.2f} % {'more' if share > 1 else 'fewer'} bytes than {BASELINE}"
    if share > 1:
        told = f"{much} in the same rounds: it saves nothing, unless it gets there in fewer of them"
    elif share == 1:
        told = f"exactly as many bytes as {BASELINE} in the same rounds: it saves nothing, unless it needs fewer"
    elif 1 - share < NEXT_TO_NOTHING:
        told = f"{much} in the same rounds, which is next to nothing"
    else:
        told = f"{much} in the same rounds"
    parameters = one.exchanges[0].parameters
    head, whole = parameters.get(HEAD, 0), sum(parameters.values())
    stays = "crosses" if HEAD in one.upload else "stays with the clients"
    of_whole = f"{head:,} of {whole:,} parameters, {100 * head / whole:.2f} %"
    return f"{one.label}: {told}. Its head ({of_whole}) {stays}."


def _sections(profiled: Sequence[Profiled], problems: Sequence[Problem], target: float) -> list[Section]:
    several = ["Means over seeds."] if any(len(one.exchanges) > 1 for one in profiled) else []
    sections = [
        Section(
            "Federated bytes",
            [
                "What the clients of the cohorts send (up) and receive (down) in all rounds, and what one of them "
                "sends in one round, by group of parameters. It does not depend on the number of ranks.",
                *several,
            ],
            _federated(profiled),
        ),
        Section("Between ranks", _wire_notes(profiled), _wire(profiled)),
        Section(
            "Time of the collectives",
            [
                "Seconds: from the arrival of the last rank to the end, by the server's clock, for waiting for slow "
                "ranks is no communication. Share: of the rounds' time. Median: of the collectives that carry the "
                "shared groups; tests: of those with the tests' few numbers, which is latency. Bandwidths of the "
                "former, medians, as nccl-tests define them: algorithm bandwidth is the payload over the seconds; bus "
                "bandwidth is what each rank sends over the seconds, of an all-reduce 2(n-1)/n of the former, to be "
                "held against the speed of a link whatever n.",
                "Exposed: seconds in collectives with nothing else to do; overlapped: with a test to do meanwhile, "
                "which only rounds with an evaluation have. Both are means over the ranks that host clients.",
            ],
            _time(profiled),
        ),
        _to_target(profiled, target),
        *_checked(profiled),
        Section("By round", ["Of the first seed."], _by_round(profiled), folded=True),
    ]
    if problems:
        sections.append(Section("Left out", reading.told(problems)))
    return sections


def _federated(profiled: Sequence[Profiled]) -> Rows:
    groups = list(dict.fromkeys(name for one in profiled for name in one.upload))
    rows = [["method", "up", "down", "together", f"of {BASELINE}'s", *(f"upload: {name}" for name in groups)]]
    for one in profiled:
        upload = one.upload
        rows.append(
            [
                one.label,
                _size(one.mean(lambda of: of.up)),
                _size(one.mean(lambda of: of.down)),
                size(one.federated),
                _percent(one.of_fedavg),
                *(_size(upload.get(name)) for name in groups),
            ]
        )
    return rows


def _wire_notes(profiled: Sequence[Profiled]) -> list[str]:
    ranks = sorted({exchange.num_ranks for one in profiled for exchange in one.exchanges})
    notes = [
        f"Of {' or '.join(map(str, ranks))} rank(s), each of which computes for many clients, so that one sum a round "
        "crosses. Payload: the buffers handed to collectives; beside it, the part that is no model's (weights, "
        "metrics, clocks, tests). Ring: what n ranks send in all, of an all-reduce 2(n-1) times the payload.",
        "Counted: what the interfaces (loopback and cards) of all hosts sent in the rounds, by the kernel. It counts "
        "packets, with their headers and acknowledgements (0.1 to 0.9 % of an all-reduce of 1 MB or more; of smaller "
        "ones 2.6 kB each between 2 ranks, 8 kB between 3), the ranks' signs of life (1 kB a second of each), and all "
        "else that the hosts sent meanwhile.",
    ]
    if any((exchange.beyond or 0) > MUCH for one in profiled for exchange in one.exchanges):
        notes.append(
            f"More than {100 * MUCH:.0f} % beyond the ring: either the messages are small, or other processes sent "
            "too. On one host a run has a loopback to itself, for root, by: unshare --net sh -c 'ip link set lo up; "
            "torchrun --master_addr=127.0.0.1 --master_port=29500 ...'."
        )
    if any(exchange.backend == "nccl" for one in profiled for exchange in one.exchanges):
        notes.append("NCCL sends between GPUs of one host by NVLink or shared memory, which no interface counts.")
    return notes


def _wire(profiled: Sequence[Profiled]) -> Rows:
    names = list(dict.fromkeys(name for one in profiled for of in one.exchanges for name in of.interfaces))
    names = [name for name in names if any(of.interfaces.get(name) for one in profiled for of in one.exchanges)]
    rows = [["method", "payload", "no model's", "ring", "counted", "difference", *names]]
    for one in profiled:
        beyond = one.mean(lambda of: of.beyond)
        rows.append(
            [
                one.label,
                _size(one.mean(lambda of: of.payload)),
                _percent(one.mean(lambda of: of.of_scalars)),
                _size(one.mean(lambda of: of.wire)),
                _size(one.mean(lambda of: of.counted)),
                NONE if beyond is None else f"{100 * beyond:+.2f} %",
                *(_size(fmean(of.interfaces.get(name, 0) for of in one.exchanges)) for name in names),
            ]
        )
    return rows


def _time(profiled: Sequence[Profiled]) -> Rows:
    head = ["method", "seconds", "share", "calls", "median", "tests", "algorithm bw", "bus bw", "exposed", "overlapped"]
    rows = [head]
    for one in profiled:
        algorithm = one.mean(lambda of: of.main.algorithm_bandwidth if of.main else None)
        bus = one.mean(lambda of: of.main.bus_bandwidth if of.main else None)
        rows.append(
            [
                one.label,
                _seconds(one.mean(lambda of: of.seconds)),
                _percent(one.mean(lambda of: of.share)),
                f"{fmean(sum(kind.calls for kind in of.collectives) for of in one.exchanges):g}",
                _seconds(one.mean(lambda of: of.main.seconds if of.main else None)),
                _seconds(one.mean(lambda of: of.tests.seconds if of.tests else None)),
                NONE if algorithm is None else f"{size(algorithm)}/s",
                NONE if bus is None else f"{size(bus)}/s",
                _seconds(one.mean(lambda of: of.exposed)),
                _seconds(one.mean(lambda of: of.overlapped)),
            ]
        )
    return rows


def _to_target(profiled: Sequence[Profiled], asked: float) -> Section:
    chosen = "as asked for" if asked else f"{100 * SHARE:.0f} % of {BASELINE}'s last"
    note = (
        f"The first evaluation at which {RECEIVED} is the target or more, {chosen}; no finer than the runs were "
        f"evaluated. Seconds of training and communication. Accuracy: the last of {RECEIVED}; where heads are "
        "private, that is of personal models, and FedAvg's of one model for all."
    )
    rows = [["method", "accuracy", "target", "rounds", "bytes", f"of {BASELINE}'s", "seconds"]]
    for one in profiled:
        target = one.target(asked)
        rows.append(
            [
                one.label,
                compare.percent(one.group.accuracy(RECEIVED), "±"),
                NONE if target is None else f"{100 * target:.2f}",
                *(_way(one, target) if target is not None else [NONE] * 4),
            ]
        )
    return Section("To a target accuracy", [note], rows)


def _way(one: Profiled, target: float) -> list[str]:
    """Rounds, bytes, bytes of FedAvg's, and seconds; a mean only where every seed got there."""
    points = one.there(target)
    if not points:
        way = one.to_target(target)
        told = f"reached by {len(way.points)} of {way.num_seeds} seeds" if way.points else "not reached"
        return [told if way.evaluations > 1 else "no evaluation during the run", NONE, NONE, NONE]
    sent = fmean(point.bytes for point in points)
    of_fedavg = one.baseline.there(target) if one.baseline else []
    return [
        f"{fmean(point.round for point in points):g}",
        size(sent),
        _percent(sent / fmean(point.bytes for point in of_fedavg)) if of_fedavg else NONE,
        _seconds(fmean(point.seconds for point in points)),
    ]


def _checked(profiled: Sequence[Profiled]) -> list[Section]:
    """The ledger against the traces, where rounds were traced."""
    rows = [["method", "calls traced", "calls in the ledger", "elements traced", "elements in the ledger", "equal"]]
    for one in profiled:
        for exchange in one.exchanges:
            if of := exchange.traced:
                equal = (of.calls, of.elements) == (of.ledger_calls, of.ledger_elements)
                numbers = (of.calls, of.ledger_calls, of.elements, of.ledger_elements)
                rows.append([one.label, *(f"{number:,}" for number in numbers), "yes" if equal else "NO"])
    note = "Collectives of the traced rounds, all ranks together: as the profiler saw them, and as the ledger has them."
    return [Section("Checked against the traces", [note], rows)] if len(rows) > 1 else []


def _by_round(profiled: Sequence[Profiled]) -> Rows:
    rows = [["method", "round", "up", "down", "payload", "ring", "counted", "in collectives", "share"]]
    for one in profiled:
        for line in one.exchanges[0].rounds:
            rows.append([one.label, *_cells(line)])
    return rows


def _cells(line: Round) -> list[str]:
    return [
        str(line.number),
        *(_size(number) for number in (line.federated_up, line.federated_down, line.payload, line.wire, line.counted)),
        _seconds(line.seconds),
        _percent(line.seconds / line.total_seconds if line.total_seconds else None),
    ]


def _picture(profiled: Sequence[Profiled], asked: float) -> Picture:
    labels = [one.label for one in profiled]
    groups = list(dict.fromkeys(name for one in profiled for name in one.upload))
    parts: dict[str, list[float]] = {name: [] for name in groups}
    lines = []
    for one in profiled:
        upload = one.upload
        for name in groups:
            parts[name].append(1e-6 * one.federated * upload.get(name, 0) / (sum(upload.values()) or 1))
        curve = curves.mean_curve([exchange.history for exchange in one.exchanges])
        points = [point for point, _ in curve]
        lines.append(
            charts.Line(one.label, [1e-6 * point.bytes for point in points], [100 * p.received for p in points], None)
        )
    targets = {target for one in profiled if (target := one.target(asked)) is not None}
    return charts.exchanged(labels, parts, lines, 100 * min(targets) if len(targets) == 1 else None)


def _as_json(profiled: Sequence[Profiled], asked: float) -> dict[str, Any]:
    return {"methods": [_as_object(one, asked) for one in profiled]}


def _as_object(one: Profiled, asked: float) -> Mapping[str, Any]:
    target = one.target(asked)
    points = one.there(target) if target is not None else []
    return {
        "label": one.label,
        "method": one.group.method,
        "baseline": one.baseline.label if one.baseline else None,
        "federated_bytes": one.federated,
        "of_baseline": one.of_fedavg,
        "upload_bytes": one.upload,
        "target": {"accuracy": target, "reached": [dataclasses.asdict(point) for point in points]},
        "runs": [
            {"directory": str(run.path), "seed": run.seed, **dataclasses.asdict(exchange)}
            for run, exchange in zip(one.group.runs, one.exchanges, strict=True)
        ],
    }


def _size(value: float | None) -> str:
    return NONE if value is None else size(value)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{1000 * value:.2f} ms" if value < 1 else f"{value:.2f} s"
