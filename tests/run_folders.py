"""Small run directories written by hand: the numbers are those that a test chose."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbsd_dist import dialect


def write_run(
    path: Path,
    method: str = "fedbsd",
    seed: int = 0,
    *,
    accuracy: Mapping[str, float] = {"received": 0.5, "head_tuned": 0.75},
    received: Sequence[float] = (),
    validation: Mapping[str, float] = {},
    clients: Sequence[float] = (0.5, 1.0),
    upload: Mapping[str, int] = {"backbone": 90, "head": 10},
    settings: Mapping[str, Mapping[str, Any]] = {},
    sha256: str = "",
    summary: Mapping[str, Any] = {},
) -> Path:
    """A finished run. `received`: of each round, of 1000 bytes up and down and 2 + 1 seconds; or of the last alone.

    `validation`: of each stage, after the last round; before it, it was perfect.
    """
    path.mkdir(parents=True)
    config: dict[str, Any] = {"data": {"alpha": 0.1}, "method": {"name": method}, "run": {"dir": str(path)}}
    for section, of in settings.items():
        config[section] = {**config.get(section, {}), **of}
    config["seed"] = seed
    (path / "config.yaml").write_text(dialect.write(config))
    (path / "partition.json").write_text(json.dumps({"sha256": sha256 or f"of seed {seed}"}))
    exchanged = {"federated_up": 1000, "federated_down": 1000}
    received = received or [accuracy["received"]]
    lines = [
        {
            "round": number,
            "accuracy": {"received": {"mean": value}},
            "bytes": exchanged,
            "seconds": {"training": 2.0, "communication": 1.0, "evaluation": 50.0},
            **({"validation": {"received": {"mean": 1.0}}} if validation else {}),
        }
        for number, value in enumerate(received, 1)
    ]
    if validation:
        lines[-1]["validation"] = {stage: {"mean": value} for stage, value in validation.items()}
    entries = [
        {"round": number, "purpose": purpose, "elements_by_group": of}
        for number in range(1, len(received) + 1)
        for purpose, of in (("aggregate", {**upload, "scalars": 7}), ("evaluation", {"scalars": 999}))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    rows = [f"{len(received)},head_tuned,{client},10,10,{value},0.1" for client, value in enumerate(clients)]
    header = "round,stage,client,num_train,num_test,accuracy,loss"
    (path / "clients.csv").write_text("\n".join([header, "0,head_tuned,0,10,10,0.01,9", *rows]) + "\n")
    whole = {
        "accuracy": {stage: {"mean": value, "worst_10pct": value / 2} for stage, value in accuracy.items()},
        "bytes": {"federated_up": 1000 * len(received), "federated_down": 1000 * len(received)},
        **summary,
    }
    (path / "summary.json").write_text(json.dumps(whole))
    return path
