"""What a person sees: one line a round, a closing table. All from the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedbsd_dist.faults import named
from fedbsd_dist.record.spending import shares
from fedbsd_dist.units import duration, size

Line = Mapping[str, Any]


def progress(line: Line, rounds: int, seconds_left: float) -> str:
    """One line a round: losses, accuracies where they were measured, faults, bytes, time, time left."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in line["loss"].items()) or "no upload counts"
    stages = "".join(f"  {stage} {100 * of['mean']:.2f}%" for stage, of in line["accuracy"].items())
    counts = {kind: len(line["faults"][kind]) for kind in ("unavailable", "late")}
    faults = [f"{count} {kind}" for kind, count in counts.items() if count]
    faults += [f"{named(clients)} diverged" for clients in [line["faults"]["diverged"]] if clients]
    sent = line["bytes"]["federated_up"] + line["bytes"]["federated_down"]
    width = len(str(rounds))
    left = f"  left {duration(seconds_left)}" if line["round"] < rounds else ""
    return (
        f"round {line['round']:{width}d}/{rounds}  {losses}{stages}  {', '.join(faults)}{'  ' * bool(faults)}"
        f"{size(sent)}  {duration(line['seconds']['total'])}{left}"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def closing(summary: Mapping[str, Any], run_dir: str) -> str:
    """The table that a run ends with."""
    accuracy = [["accuracy, all clients", "mean", "by samples", "std", "worst 10 %"]]
    several = summary["accuracy_last_rounds"]
    rows = {
        **summary["accuracy"],
        f"received, mean of last {several['rounds']} rounds ({several['evaluations']} evaluated)": several["received"],
    }
    if best := summary.get("best"):
        rows[f"received, best by validation (round {best['round']})"] = best["received"]
    for stage, of in rows.items():
        accuracy.append(
            [
                f"  {stage}",
                *(f"{100 * of[key]:.2f}" for key in ("mean", "weighted_mean", "std", "worst_10pct")),
            ]
        )
    sent = summary["bytes"]["federated_up"] + summary["bytes"]["federated_down"]
    fedavg, head, parameters = (
        summary["fedavg_bytes"],
        summary["parameters"]["head"],
        sum(summary["parameters"].values()),
    )
    wire, payload = size(summary["bytes"]["wire"]), size(summary["bytes"]["payload"])
    seconds = summary["seconds"]
    share = f" ({100 * sent / fedavg:.1f} %)" if fedavg else ""
    faults = ", ".join(f"{count} {kind}" for kind, count in summary["faults"].items() if count)
    facts = {
        "clients sent, received": f"{size(sent)}; FedAvg with this model {size(fedavg)}{share}",
        **({"faults": f"{faults}, a client counted once a round"} if faults else {}),
        "between ranks": f"{wire} by the ring model, {payload} payload",
        "head": f"{head:,} of {parameters:,} parameters ({100 * head / parameters:.2f} %)",
        "time": ", ".join(
            f"{name} {duration(seconds[name])}" for name in ("training", "communication", "evaluation", "checkpoint")
        ),
        **_rounds_time(seconds, summary["world_size"]),
        "run directory": run_dir,
        "curves": f"tensorboard --logdir {run_dir}/tensorboard",
    }
    width = max(map(len, facts))
    title = (
        f"{summary['method']}, {summary['rounds']} rounds, {summary['num_clients']} clients, "
        f"{summary['world_size']} rank(s), {summary['backend']} on {summary['device']}: {duration(seconds['total'])}"
    )
    return "\n".join([title, "", table(accuracy), "", *(f"{name:{width}}  {fact}" for name, fact in facts.items())])


def _rounds_time(seconds: Mapping[str, Any], num_ranks: int) -> dict[str, str]:
    """Shares of it for the mean rank that hosts clients, and for the server, which may work beside the others."""
    total, phases = seconds["total"], seconds["phases"]
    rest = {"other": max(total - sum(phases.values()), 0.0)}
    of_one = {"where it goes": f"{duration(total)}: {shares({**phases, **rest}, total)}"}
    if num_ranks == 1:
        return of_one
    return {
        **of_one,
        "on the server": shares(seconds["server"], total) or "next to nothing",
        "balance": f"the busiest rank learns {seconds['balance']:.2f} times as long as the mean",
    }
