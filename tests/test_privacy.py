"""What a method does not share stays with its client.

Three lines of defence are tried here. The channel refuses what is not the registered buffer of a shared group,
whole and itself, before anything is sent. What it cannot see is a method that copies a head's values into the
registered buffer or into its reported losses, nor what the numbers mean that `gather` is given: so the product's
methods are run with heads replaced between learning and upload, and whatever comes of it anywhere else must keep
its bits. And all that crosses in a run, those numbers included, is searched for the heads; the same search finds
them in FedAvg, which shares them.

Learning itself lets a head shape the backbone that is uploaded, through its gradients. That is the algorithm.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks, states
from test_federation import FEW, NORM, bits, build, clients_bits
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.methods import METHODS
from fedbsd_dist.wire.channel import Channel, ChannelRefusal
from fedbsd_dist.wire.collectives import CLOCKS
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import Placement, World

CPU = Placement(device=torch.device("cpu"), backend="gloo", reason="")
Groups = dict[str, Tensor]


def a_head_as_the_backbone(groups: Groups) -> Groups:
    return {"backbone": groups["head"]}


def a_head_under_its_own_name(groups: Groups) -> Groups:
    return {"head": groups["head"]}


def a_head_beside_the_backbone(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"], "head": groups["head"]}


def a_head_under_a_new_name(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"], "extra": groups["head"]}


def a_view_of_a_head(groups: Groups) -> Groups:
    return {"backbone": groups["head"].view(-1)}


def a_copy_of_the_backbone(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"].clone()}


def a_copy_with_a_head_in_it(groups: Groups) -> Groups:
    mixed = groups["backbone"].clone()
    mixed[: len(groups["head"])] = groups["head"]
    return {"backbone": mixed}


def backbone_and_head_in_one(groups: Groups) -> Groups:
    return {"backbone": torch.cat([groups["backbone"], groups["head"]])}


def the_start_of_backbone_and_head_in_one(groups: Groups) -> Groups:
    return {"backbone": torch.cat([groups["head"], groups["backbone"]])[: len(groups["backbone"])]}


def a_part_of_the_backbone(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"][:-1]}


def the_backbone_from_an_offset(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"][1:]}


def one_element_repeated_from_an_offset(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"][1:2].expand(len(groups["backbone"]))}


def one_element_repeated(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"][:1].expand(len(groups["backbone"]))}


def the_backbone_in_another_order(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"].view(4, -1).t()}


def the_backbone_in_another_shape(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"].view(1, -1)}


def the_bits_of_the_backbone_as_integers(groups: Groups) -> Groups:
    return {"backbone": groups["backbone"].view(torch.int32)}


def nothing(groups: Groups) -> Groups:
    return {}


def the_backbone_moved_onto_a_head(groups: Groups) -> Groups:
    groups["backbone"].data = groups["head"]
    return {"backbone": groups["backbone"]}


def the_backbone_moved_onto_a_mixture(groups: Groups) -> Groups:
    groups["backbone"].set_(torch.cat([groups["head"], groups["backbone"]])[: len(groups["backbone"])])
    return {"backbone": groups["backbone"]}


class Liar(Tensor):
    """A tensor that says it is where another one is."""

    def data_ptr(self) -> int:
        return self.claimed.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.claimed.untyped_storage()


def a_tensor_that_lies_about_its_storage(groups: Groups) -> Groups:
    liar = a_copy_with_a_head_in_it(groups)["backbone"].as_subclass(Liar)
    liar.claimed = groups["backbone"]
    return {"backbone": liar}


ATTEMPTS = [
    a_head_as_the_backbone,
    a_head_under_its_own_name,
    a_head_beside_the_backbone,
    a_head_under_a_new_name,
    a_view_of_a_head,
    a_copy_of_the_backbone,
    a_copy_with_a_head_in_it,
    backbone_and_head_in_one,
    the_start_of_backbone_and_head_in_one,
    a_part_of_the_backbone,
    the_backbone_from_an_offset,
    one_element_repeated_from_an_offset,
    one_element_repeated,
    the_backbone_in_another_order,
    the_backbone_in_another_shape,
    the_bits_of_the_backbone_as_integers,
    nothing,
    the_backbone_moved_onto_a_head,
    the_backbone_moved_onto_a_mixture,
    a_tensor_that_lies_about_its_storage,
]


def registered(world: World, exact: bool) -> tuple[Channel, Groups]:
    """A channel that knows the backbone, and the live model's groups."""
    groups = {"backbone": torch.arange(1.0, 41.0), "head": torch.full((6,), 777.0)}
    shared = {"backbone": groups["backbone"]}
    return Channel(world, CPU, Ledger(), shared=shared, num_metrics=1, exact=exact, weight_bound=1), groups


@pytest.mark.parametrize("exact", [False, True], ids=["float32", "exact"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
def test_channel_takes_the_registered_buffer_and_nothing_else(attempt, exact, monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *_: pytest.fail("sent"))
    world = World(rank=0, size=1, local_rank=0, hosts=((0, 1),), store=dist.HashStore())
    channel, groups = registered(world, exact)
    channel.add({"backbone": groups["backbone"]}, 1.0, torch.ones(1))
    accumulated = channel._buffer.clone()
    assert accumulated[:40].any()
    with pytest.raises(ChannelRefusal):
        channel.add(attempt(groups), 1.0, torch.ones(1))
    assert torch.equal(channel._buffer, accumulated)
    assert channel._ledger.entries == []


def _attempt(world: World, attempt: Callable[[Groups], Groups], culprit: int) -> tuple[bool, list, list]:
    """(refused, payload sent, mean) of a reduction in which one rank tries to send more than it may."""
    torch.set_num_threads(1)
    world.join(CPU)
    channel, groups = registered(world, exact=False)
    backbone = groups["backbone"]
    if world.rank:
        channel.add({"backbone": backbone}, world.rank, torch.ones(1))
    refused = False
    if world.rank == culprit:
        try:
            channel.add(attempt(groups), 1.0, torch.ones(1))
        except ChannelRefusal:
            refused = True
    payload = channel._buffer[: -3 * CLOCKS].tolist()  # without the clocks
    return refused, payload, channel.reduce(1).groups["backbone"].tolist()


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_refusal_on_one_rank_leaves_the_sum_of_all_as_it_was(culprit):
    outcomes = run_ranks(3, _attempt, a_head_beside_the_backbone, culprit)
    assert [refused for refused, _, _ in outcomes] == [rank == culprit for rank in range(3)]
    backbone = torch.arange(1.0, 41.0)
    for rank, (_, payload, mean) in enumerate(outcomes):
        assert payload == [*(rank * backbone).tolist(), rank, 0, float(rank > 0), 0]
        assert mean == backbone.tolist()


TAINT = 1e30
"""Finite, for of what is not, one bit crosses: that the client is left out. All else would show it."""


def head_of(client: int, numel: int) -> Tensor:
    """A head that is like no other: the values of a trained one in size, drawn for a client."""
    return torch.from_numpy(np.random.default_rng(client).normal(0, 0.1, numel).astype(np.float32))


def replace_heads(federation, replacement: Callable[[Turn, Tensor], Tensor]) -> None:
    """After local learning, before the upload and the private rows are taken."""
    learn = federation.method.learn

    def learn_and_replace(turn: Turn) -> Tensor:
        losses = learn(turn)
        head = turn.model.buffers["head"]
        head.copy_(replacement(turn, head))
        return losses

    federation.method.learn = learn_and_replace


def _taint(world: World, options: tuple[str, ...], value: float | None) -> tuple[dict, dict, dict] | int:
    """A round in which the heads of rank 1's clients become `value`: (aggregate, shared state, clients' state), or
    the exit code.
    """
    federation = build(world, FEW, "wire.sum=exact", *options)
    if world.rank == 1 and value is not None:
        replace_heads(federation, lambda turn, head: torch.full_like(head, value))
    aggregates = []
    reduce = federation.channel.reduce
    federation.channel.reduce = lambda *given: aggregates.append(reduce(*given)) or aggregates[-1]
    try:
        federation.round(1)
    except SystemExit as leaving:
        return leaving.code
    aggregate = {"metrics": aggregates[0].metrics.tobytes(), **bits(aggregates[0].groups)}
    return aggregate, bits(federation.shared), clients_bits(federation)


@pytest.mark.parametrize(
    "options",
    [
        ("method.name=fedbsd",),
        ("method.name=fedbsd", "method.student_start=own", "method.schedule=head_then_backbone"),
        ("method.name=fedper",),
        ("method.name=fedper", "wire.codec=topk"),
    ],
    ids=["fedbsd", "fedbsd-own", "fedper", "fedper-topk"],
)
def test_a_head_that_is_tainted_after_learning_is_felt_by_nobody_else(options):
    # one model's head after learning is private: exact sums, so every bit elsewhere can be compared
    options = (NORM, *options)
    honest = run_ranks(3, _taint, options, None)
    tainted = run_ranks(3, _taint, options, TAINT)
    for rank in range(3):
        assert tainted[rank][:2] == honest[rank][:2]
    assert honest[0][2] == tainted[0][2] == {}
    assert honest[2][2] == tainted[2][2] != {}
    for client, state in tainted[1][2].items():
        assert (np.frombuffer(state.pop("head"), np.float32) == np.float32(TAINT)).all()  # the taint was there
        assert honest[1][2][client].pop("head")
        assert state == honest[1][2][client]


def _taint_all(world: World, method: str, taint: bool) -> tuple[dict, dict, dict]:
    """A round in which all that rank 1's clients keep is tainted after learning: (aggregate, shared state, clients'
    state).
    """
    federation = build(world, FEW, "wire.sum=exact", NORM, f"method.name={method}")
    learn, aggregates = federation.method.learn, []

    def learn_and_taint(turn: Turn) -> Tensor:
        losses = learn(turn)
        for name in turn.private if taint and world.rank == 1 else ():
            turn.model.buffers[name].fill_(TAINT)
        return losses

    reduce = federation.channel.reduce
    federation.method.learn = learn_and_taint
    federation.channel.reduce = lambda *given: aggregates.append(reduce(*given)) or aggregates[-1]
    federation.round(1)
    aggregate = {"metrics": aggregates[0].metrics.tobytes(), **bits(aggregates[0].groups)}
    return aggregate, bits(federation.shared), clients_bits(federation)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("fedavg", "fedavg_ft", "fedprox")])
def test_what_a_client_keeps_is_felt_by_nobody_else_in_any_method(method):
    """Heads, personal models, control variates, batch norm, teachers: whatever a method leaves with a client."""
    honest, tainted = (run_ranks(3, _taint_all, method, taint) for taint in (False, True))
    kept = {name for state in honest[1][2].values() for name in state}
    assert bool(kept) == (method not in ("per_fedavg", "fedbabu"))
    for rank in range(3):
        assert tainted[rank][:2] == honest[rank][:2]
    assert tainted[2][2] == honest[2][2]
    assert (tainted[1][2] != honest[1][2]) == bool(kept)


def test_a_head_that_became_nan_ends_a_run_that_shares_heads():
    options = (NORM, "method.name=fedavg", "fault.max_diverged_rounds=1")
    assert run_ranks(3, _taint, options, float("nan")) == [2, 2, 2]


def likeness(haystack: np.ndarray, needle: np.ndarray) -> float:
    """Highest correlation of `needle` with any stretch of `haystack`, whatever its scale or sign.

    The heads here are independent noise: in a sum of k of them each is found with a likeness of 1/sqrt(k).
    """
    haystack, needle = haystack.astype(np.float64).ravel(), needle.astype(np.float64).ravel()
    if len(haystack) < len(needle):
        return 0.0
    length = 1 << (len(haystack) + len(needle)).bit_length()
    spectrum = np.fft.rfft(haystack, length) * np.conj(np.fft.rfft(needle, length))
    products = np.fft.irfft(spectrum, length)[: len(haystack) - len(needle) + 1]
    squares = np.concatenate([[0.0], np.cumsum(haystack**2)])
    energy = squares[len(needle) :] - squares[: -len(needle)]
    # a stretch of zeros is like nothing; rounding of the sums above must not make it seem so
    floor = 1e-12 * squares[-1] / len(haystack) * len(needle) + np.finfo(float).tiny
    return float((np.abs(products) / np.sqrt(np.maximum(energy, floor)) / np.linalg.norm(needle)).max())


def test_likeness_finds_a_scaled_head_in_a_sum_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    needle, noise = rng.normal(size=650), rng.normal(size=100_000)
    assert likeness(noise, needle) < 0.25
    hidden = noise.copy()
    hidden[777 : 777 + 650] = -1e-4 * needle
    assert likeness(hidden, needle) > 0.99
    hidden[777 : 777 + 650] = sum(rng.normal(size=650) for _ in range(4)) + needle
    assert likeness(hidden, needle) > 0.35
    assert likeness(np.zeros(1000), needle) == 0


def _search(world: World, options: tuple[str, ...]) -> tuple[list[float], list[float], int]:
    """Replaces every head by a known one after learning, and looks for all of them in what crossed and in what
    other ranks hold: (likeness by client, fraction of its very numbers found in any order, payloads searched).
    """
    federation = build(world, FEW, "train.rounds=2", "evaluate.every=1", *options)
    numel = len(federation.model.buffers["head"])
    heads = [head_of(client, numel).numpy() for client in range(federation.config.data.num_clients)]
    replace_heads(federation, lambda turn, head: head_of(turn.client, numel))
    crossed: list[np.ndarray] = []
    all_reduce, all_to_all, all_gather = dist.all_reduce, dist.all_to_all_single, dist.all_gather

    def hear(*tensors: Tensor) -> None:
        # a sparse code has values of float32 among its integers
        values = [tensor.view(torch.float32) if tensor.dtype == torch.int32 else tensor.float() for tensor in tensors]
        crossed.append(torch.cat([part.flatten() for part in values]).numpy())

    def listen(tensor: Tensor, *, async_op: bool) -> dist.Work:
        hear(tensor)
        work = all_reduce(tensor, async_op=async_op)
        work.wait()
        hear(tensor)
        return work

    def listen_to_parts(found: Tensor, given: Tensor) -> None:
        hear(given)
        all_to_all(found, given)
        hear(found)

    def listen_to_all(found: list[Tensor], given: Tensor) -> None:
        hear(given)
        all_gather(found, given)
        hear(*found)

    dist.all_reduce, dist.all_to_all_single, dist.all_gather = listen, listen_to_parts, listen_to_all
    for number in (1, 2):
        federation.round(number)
    federation.state_sha256(2)
    own = {client: state["head"] for client, state in states(federation).items() if "head" in state}
    assert all((head.numpy() == heads[client]).all() for client, head in own.items())
    found, verbatim = [], []
    for client, head in enumerate(heads):
        places = crossed + [tensor.numpy() for tensor in federation.shared.values()]
        if client not in federation.shards:
            # what this rank holds of its own clients is searched for the others' heads
            places += [rows.numpy() for state in states(federation).values() for rows in state.values()]
            places += [buffer.numpy() for buffer in federation.model.buffers.values()]
        found.append(max(likeness(place, head) for place in places))
        verbatim.append(max(np.isin(head, place).mean() for place in places))
    return found, verbatim, len(crossed)


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        (("method.name=fedbsd",), 0),
        (("method.name=fedper",), 0),
        (("method.name=fedbsd", "wire.codec=int8"), 2),
        (("method.name=fedper", "wire.codec=topk", "wire.topk=0.3"), 1),
    ],
    ids=["fedbsd", "fedper", "fedbsd-int8", "fedper-topk"],
)
def test_no_head_crosses_or_lies_on_another_rank(options, codes):
    for found, verbatim, payloads in run_ranks(3, _search, (NORM, *options)):
        # two aggregates, with so many collectives of codes each, two evaluations, one digest; before and after
        assert payloads == 2 * (5 + 2 * codes)
        assert max(found) < 0.3
        assert max(verbatim) < 0.05  # a number in a hundred is also one of the backbone's by chance


@pytest.mark.parametrize(("codec", "codes", "least"), [("none", 0, 0.99), ("int8", 2, 0.6)])
def test_the_search_finds_heads_that_cross(codec, codes, least):
    options = (NORM, "method.name=fedavg", "train.participation=0.1", f"wire.codec={codec}")
    for found, verbatim, payloads in run_ranks(3, _search, options):
        assert payloads == 2 * (5 + 2 * codes)
        # a client a round: its head crosses times its weight, and the last one's is now everybody's but for rounding;
        # with a codec, what crosses is its difference from the head before
        *others, first, second = sorted(found)
        assert max(others) < 0.3 < least < first <= second
        assert codes or max(verbatim) > 0.3
