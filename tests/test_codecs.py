"""What of an update crosses, and what of it is kept: against plain loops in NumPy, written from the definitions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from test_bad_input import refused
from test_federation import FEW, NORM, build, states
from test_interface import SHORT, alone
from test_plan import plan_for
from test_resume import OPTIONS, outcome, resume, stop_in_round

from fedbsd_dist.main import run
from fedbsd_dist.wire.codecs import BFloat16, Codec, Int8, TopK, code_bytes
from fedbsd_dist.wire.world import World

CODECS: dict[str, Codec] = {"bf16": BFloat16(), "int8": Int8(), "topk": TopK(0.05)}
WIDTH = 256
Groups = dict[str, np.ndarray]


def drawn(numel: int, seed: int = 0) -> np.ndarray:
    """Of both signs, over six orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (np.exp(rng.uniform(-14, 0, numel)) * rng.choice([-1, 1], numel)).astype(np.float32)


def coded(codec: Codec, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the code of `values` stands for; the code is as long as it is said to be."""
    code = codec.encode(torch.from_numpy(values), torch.Generator().manual_seed(seed))
    assert (code.dtype, code.numel(), code.nbytes) == (
        codec.dtype,
        codec.length(len(values)),
        code_bytes(codec, len(values)),
    )
    decoded = codec.decode(code, len(values))
    assert (decoded.dtype, decoded.shape) == (torch.float32, (len(values),))
    return decoded.numpy()


def scales_of(values: np.ndarray) -> np.ndarray:
    """A 127th of the largest magnitude of each 256, for each of them."""
    starts = range(0, len(values), WIDTH)
    return np.concatenate(
        [np.full_like(part, np.abs(part).max() / 127) for part in (values[i : i + WIDTH] for i in starts)]
    )


@pytest.mark.parametrize("numel", [1, 255, 256, 1000])
def test_int8_is_met_on_average_and_never_off_by_a_scale(numel):
    values = drawn(numel)
    values[0] = 0
    scales, times = scales_of(values), 2000
    found = np.stack([coded(Int8(), values, seed) for seed in range(times)]).astype(np.float64)
    assert (np.abs(found - values) < scales * 1.0001 + 1e-30).all()
    assert (found[:, np.abs(values) / np.maximum(scales, 1e-30) > 126.99] != 0).all()
    # rounded up with the probability p that meets the value: variance p (1 - p) scale**2
    units = np.abs(values) / np.maximum(scales, 1e-30)
    p = units - np.floor(units)
    deviation = scales * np.sqrt(p * (1 - p) / times)
    assert (np.abs(found.mean(0) - values) <= 5 * deviation + 1e-6 * scales).all()
    assert numel == 1 or len(np.unique(found, axis=0)) == times  # other seeds, other draws


def test_int8_of_zeros_is_zeros():
    assert (coded(Int8(), np.zeros(300, np.float32)) == 0).all()


def test_bf16_is_off_by_no_more_than_half_a_step():
    values = drawn(5000)
    assert (np.abs(coded(BFloat16(), values) - values) <= np.abs(values) * 2.0**-8 * 1.00001).all()
    assert (coded(BFloat16(), np.float32([1, 1.0078125, -2.5, 0])) == [1, 1.0078125, -2.5, 0]).all()


@pytest.mark.parametrize(("fraction", "numel", "count"), [(0.01, 1000, 10), (0.01, 20, 1), (0.25, 10, 3), (1.0, 7, 7)])
def test_topk_has_the_largest_as_they_are_and_nothing_else(fraction, numel, count):
    values = drawn(numel, 3)
    found = coded(TopK(fraction), values)
    largest = np.argsort(-np.abs(values))[:count]
    expected = np.zeros(numel, np.float32)
    expected[largest] = values[largest]
    assert found.tolist() == expected.tolist()
    assert code_bytes(TopK(fraction), numel) == 8 * count


# ----- rounds, recorded on the ranks and done again here


@dataclass(frozen=True)
class Upload:
    weight: float
    values: Groups


@dataclass(frozen=True)
class Round:
    """Of one rank."""

    received: Groups
    uploads: dict[int, Upload]
    """By client, in the order of learning."""
    after: Groups


def arrays(groups: dict[str, torch.Tensor]) -> Groups:
    return {name: values.numpy().copy() for name, values in groups.items()}


def _rounds(world: World, options: Sequence[str], num_rounds: int) -> tuple[list[Round], dict[int, Groups], str]:
    """What each round of this rank was, what its clients have not sent in the end, and the digest of all."""
    federation = build(world, FEW, "train.batch_size=128", "train.local_epochs=1", *options)
    upload, uploads, rounds = federation.upload, {}, []

    def record(turn, losses):
        sent = arrays({name: federation.model.buffers[name] for name in federation.shared})
        uploads[turn.client] = Upload(federation.method.weight(len(turn.labels)), sent)
        return upload(turn, losses)

    federation.upload = record
    for number in range(1, num_rounds + 1):
        uploads.clear()
        received = arrays(federation.shared)
        federation.round(number)
        rounds.append(Round(received, dict(uploads), arrays(federation.shared)))
    unsent = {
        client: {
            name.removeprefix("unsent_"): values.numpy().copy() for name, values in state.items() if "unsent" in name
        }
        for client, state in states(federation).items()
    }
    return rounds, unsent, federation.state_sha256(num_rounds)


def seed_of(*name: object) -> int:
    text = "/".join(map(str, name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Plain:
    """The codecs."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.draws = name, torch.Generator().manual_seed(seed)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return {"bf16": self.bf16, "int8": self.int8, "topk": self.topk}[self.name](values)

    def bf16(self, values: np.ndarray) -> np.ndarray:
        """The upper half of the bits, after adding half of what is cut off; at a tie to an even one."""
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        even = (bits >> 16) & 1
        return (((bits + 0x7FFF + even) >> 16) << 16).astype(np.uint32).view(np.float32)

    def int8(self, values: np.ndarray) -> np.ndarray:
        found = np.zeros_like(values)
        chunks = -(-len(values) // WIDTH)
        draws = torch.rand(chunks, WIDTH, generator=self.draws).numpy()
        for chunk in range(chunks):
            part = values[chunk * WIDTH : (chunk + 1) * WIDTH]
            scale = np.abs(part).max() / np.float32(127)
            if scale:
                units = np.floor(part / scale + draws[chunk, : len(part)])
                found[chunk * WIDTH : (chunk + 1) * WIDTH] = np.clip(units, -127, 127) * scale
        return found

    def topk(self, values: np.ndarray) -> np.ndarray:
        found = np.zeros_like(values)
        largest = np.argsort(-np.abs(values))[: max(1, int(0.05 * len(values) + 0.5))]
        found[largest] = values[largest]
        return found


def mean_of(name: str, number: int, group_sums: list[list[tuple[float, Groups]]], sizes: dict[str, int]) -> Groups:
    """Of what ranks' clients sent, as [(weight, updates), ...] of each rank, over a wire that carries codes."""
    total = sum(weight for rank in group_sums for weight, _ in rank)
    vectors = []
    for rank in group_sums:
        vector = np.zeros(sum(sizes.values()), np.float32)
        for weight, updates in rank:
            vector += np.float32(weight) * np.concatenate([updates[group] for group in sizes])
        vectors.append(vector)
    if name == "topk":
        mean = sum(vectors) / np.float32(total)
    else:
        ranks = len(vectors)
        part = -(-len(vectors[0]) // (ranks * WIDTH)) * WIDTH
        padded = [np.pad(vector, (0, part * ranks - len(vector))) for vector in vectors]
        codecs = [Plain(name, seed_of(0, "codec of the sum", number, rank)) for rank in range(ranks)]
        # [from, to]: every rank draws for its parts in turn, and then for its sum
        parts = [[codecs[a](padded[a][b * part : (b + 1) * part]) for b in range(ranks)] for a in range(ranks)]
        sums = [sum(parts[a][b] for a in range(ranks)) for b in range(ranks)]
        mean = np.concatenate([codecs[b](sums[b].astype(np.float32)) for b in range(ranks)]) / np.float32(total)
    cuts = np.cumsum([*sizes.values()])
    return dict(zip(sizes, np.split(mean[: cuts[-1]], cuts[:-1]), strict=True))


@pytest.mark.parametrize(("size", "way"), [(1, "float32"), (3, "float32"), (3, "exact")])
@pytest.mark.parametrize("name", [*CODECS])
def test_rounds_are_those_of_a_plain_loop(name, way, size):
    options = (NORM, "method.name=fedavg", "train.participation=0.7", f"wire.codec={name}", "wire.topk=0.05")
    by_rank = run_ranks(size, _rounds, (*options, f"wire.sum={way}"), 2)
    errors: dict[int, Groups] = {}
    sizes = {"backbone": 9392, "head": 260}
    for number in (1, 2):
        of_ranks = [rounds[number - 1] for rounds, _, _ in by_rank]
        received = of_ranks[0].received
        assert all(
            other.after[name].tobytes() == of_ranks[0].after[name].tobytes() for other in of_ranks for name in received
        )
        sent: list[list[tuple[float, Groups]]] = []
        for rank in of_ranks:
            sent.append([])
            for client, upload in rank.uploads.items():
                updates = {}
                for group in sizes:
                    error = errors.setdefault(client, {}).get(group, np.float32(0))
                    wanted = (upload.values[group] - received[group]) + error
                    updates[group] = Plain(name, seed_of(0, "codec", number, client, group))(wanted)
                    if name == "topk":
                        errors[client][group] = wanted - updates[group]
                sent[-1].append((upload.weight, updates))
        if way == "exact":
            flat = [pair for rank in sent for pair in rank]
            weight = sum(w for w, _ in flat)
            means = {group: sum(w * u[group].astype(np.float64) for w, u in flat) / weight for group in sizes}
        else:
            means = mean_of(name, number, sent, sizes)
        for group, mean in means.items():
            off = np.abs(of_ranks[0].after[group] - (received[group] + mean))
            near = off <= 2e-7 * np.abs(received[group]) + 1e-6 * np.abs(mean).max()
            # a sum in another order may come to the other side of a boundary of rounding
            assert near.mean() > (0.999 if way == "float32" and name != "topk" else 0.999999)
        # running statistics are no update, and cross as they are
        all_uploads = [upload for rank in of_ranks for upload in rank.uploads.values()]
        weights = np.array([upload.weight for upload in all_uploads])
        statistics = weights @ np.stack([upload.values["statistics"] for upload in all_uploads]) / weights.sum()
        np.testing.assert_allclose(of_ranks[0].after["statistics"], statistics, rtol=1e-6)
    kept = {client: groups for _, unsent, _ in by_rank for client, groups in unsent.items() if groups}
    assert bool(kept) == (name == "topk")
    for client, groups in kept.items():
        for group, values in groups.items():
            assert values.tolist() == (errors.get(client, {}).get(group, np.zeros_like(values))).tolist()


@pytest.mark.parametrize(("name", "method"), [*((name, "fedbsd") for name in CODECS), ("topk", "scaffold")])
def test_with_the_exact_sum_any_number_of_ranks_gives_the_same_bits(name, method):
    options = (NORM, f"method.name={method}", f"wire.codec={name}", "wire.sum=exact", "train.participation=0.7")
    assert len({digest for size in (1, 2, 3) for _, _, digest in run_ranks(size, _rounds, options, 2)}) == 1


def test_what_is_sent_and_what_is_left_add_up_to_the_updates():
    """Everybody in every round with the same weight: the way of the shared state, times so many, is what was sent."""
    options = (NORM, "method.name=fedper", "method.mean=plain", "wire.codec=topk", "wire.sum=exact")
    (rounds, unsent, _), *_ = run_ranks(1, _rounds, options, 4)
    updates = sum(u.values["backbone"] - of.received["backbone"] for of in rounds for u in of.uploads.values())
    sent = len(unsent) * (rounds[-1].after["backbone"] - rounds[0].received["backbone"])
    left = sum(groups["backbone"] for groups in unsent.values())
    assert np.abs(left).max() > 100 * np.abs(sent + left - updates).max()
    np.testing.assert_allclose(sent + left, updates, atol=1e-6)


def _diverge(world: World) -> list[dict[int, dict[str, bytes]]]:
    """All private state after two rounds, in the second of which client 1 diverges, and what the shared state is."""
    options = ("train.batch_size=256", "train.local_epochs=1", "wire.codec=topk", "wire.sum=exact")
    federation = build(world, "method.name=fedper", *options)
    learn, found = federation.method.learn, []

    def learn_and_diverge(turn):
        losses = learn(turn)
        if (turn.client, turn.round) == (1, 2):
            turn.model.buffers["backbone"][7] = torch.nan
        return losses

    federation.method.learn = learn_and_diverge
    for number in (1, 2):
        assert federation.round(number).diverged == ([1] if number == 2 else [])
        found.append(
            {client: {n: v.numpy().tobytes() for n, v in s.items()} for client, s in states(federation).items()}
        )
    assert all(values.isfinite().all() for values in federation.shared.values())
    return found


def test_an_upload_that_diverged_leaves_what_is_unsent_as_it_was():
    before, after = run_ranks(1, _diverge)[0]
    assert before[1].keys() == {"head", "unsent_backbone"}
    assert [client for client in before if before[client] == after[client]] == [1]


@pytest.mark.parametrize("name", ["int8", "topk"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name, tmp_path):
    assert alone(*OPTIONS, f"wire.codec={name}", f"run.dir={tmp_path / 'whole'}") == 0
    stop_in_round(4, tmp_path / "run", f"wire.codec={name}")
    assert resume(tmp_path / "run", f"wire.codec={name}") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_clients_that_learn_in_one_step_have_errors_of_their_own():
    options = ("method.name=fedper", "model.name=mlp", "wire.codec=topk", "wire.topk=1.0", "train.local_epochs=1")
    apart, together = (run_ranks(1, _rounds, (*options, f"train.together={n}"), 1)[0][0][0] for n in (1, 4))
    np.testing.assert_allclose(together.after["backbone"], apart.after["backbone"], atol=1e-5)
    (_, unsent, _), *_ = run_ranks(1, _rounds, ("method.name=fedper", "wire.codec=topk", "train.together=4"), 2)
    assert len({groups["backbone"].tobytes() for groups in unsent.values()}) == len(unsent) == 6


# ----- the ledger


def _collectives(world: World, arguments: list[str]) -> list[tuple[str, str, int, int]]:
    """(collective, dtype, elements, bytes) of all tensors that are handed to torch.distributed in a run."""
    seen = []
    names = {"all_reduce": ("all-reduce", 0), "all_to_all_single": ("all-to-all", 1), "all_gather": ("all-gather", 1)}
    for function, (name, position) in names.items():
        original = getattr(dist, function)

        def called(*given, original=original, name=name, position=position, **named):
            mine = given[position]
            seen.append((name, str(mine.dtype).removeprefix("torch."), mine.numel(), mine.nbytes))
            return original(*given, **named)

        setattr(dist, function, called)
    run(arguments, world)
    return seen


UPLOADS = {"bf16": 2 * 9392, "int8": 9392 + 4 * 37, "topk": 8 * 94}
"""Bytes of an update of 9392 parameters: 37 chunks, a hundredth."""


@pytest.mark.parametrize("name", [*CODECS])
@pytest.mark.parametrize("way", ["float32", "exact"])
def test_the_ledger_has_all_that_crosses(name, way, tmp_path):
    options = (NORM, "train.batch_size=64", "train.participation=0.5", "evaluate.head_epochs=1", "data.num_clients=6")
    options = (
        *options,
        "train.rounds=2",
        "run.device=cpu",
        "evaluate.every=0",
        f"wire.codec={name}",
        f"wire.sum={way}",
    )
    by_rank = run_ranks(3, _collectives, [f"run.dir={tmp_path / 'run'}", *options])
    lines = [json.loads(line) for line in (tmp_path / "run/ledger.jsonl").read_text().splitlines()]
    for seen in by_rank:
        assert [(e["collective"], e["dtype"], e["elements"], e["payload_bytes"]) for e in lines] == seen
    apart = ["all-gather"] if name == "topk" else ["all-to-all", "all-gather"]
    of_round = [line for line in lines if line["round"] == 1]
    assert [line["collective"] for line in of_round] == ["all-reduce", *(apart if way == "float32" else [])]
    for line in lines:
        assert sum(line["elements_by_group"].values()) == line["elements"]
        sent = {"all-reduce": 2 * 2, "all-to-all": 2, "all-gather": 3 * 2}[line["collective"]]
        assert line["wire_bytes"] == sent * line["payload_bytes"]
    whole = {"bf16": 2 * 9392, "int8": 9392, "topk": 8 * 94 * 2}[name]  # two clients on the fuller rank, at least
    if way == "float32":
        assert (
            of_round[0]["elements_by_group"]["statistics"]
            == of_round[0]["elements"] - of_round[0]["elements_by_group"]["scalars"]
            == 8
        )
        assert whole <= of_round[1]["payload_bytes"] < whole * 1.51 + 4 * 256 * 3
    foretold = plan_for(3, *options).payloads
    assert {
        line["collective"]: line["payload_bytes"] for line in of_round if name != "topk"
    }.items() <= foretold.items()
    assert foretold["all-reduce"] == of_round[0]["payload_bytes"]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["upload_bytes"] == {"backbone": UPLOADS[name], "statistics": 32}
    assert summary["bytes"]["federated_up"] == 2 * 3 * (UPLOADS[name] + 32)
    assert summary["bytes"]["federated_down"] == 2 * 3 * 4 * (9392 + 8)


@pytest.mark.parametrize(
    ("option", "word"), [("wire.topk=0", "greater than 0"), ("wire.topk=1.01", "1"), ("wire.codec=int4", "int8")]
)
def test_what_is_no_codec_is_refused(option, word, capsys, tmp_path):
    assert word in refused(capsys, tmp_path, *SHORT, option, f"run.dir={tmp_path / 'run'}")


def test_the_plan_says_what_crosses(capsys, tmp_path: Path):
    assert alone(*SHORT, "wire.codec=int8", "--check=3", f"run.dir={tmp_path}") == 0
    out = capsys.readouterr().out
    assert "all-to-all" in out
    assert "as much down" not in out
