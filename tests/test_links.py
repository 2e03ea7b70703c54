"""The link model says what simulations of the messages say, one by one; its command, what the ledger of a run says."""

import heapq
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranks import federate

from fedbsd_dist import links
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import forecast
from fedbsd_dist.topologies import SEGMENT, TOPOLOGIES, WINDOW, Link, Traffic, hierarchical, ring, slowest, star, tree
from fedbsd_dist.units import size

WARM = math.inf
"""Window of a connection that nothing holds back."""
CLIENT = Link(latency=0.01, up=2e6, down=5e6, window=WARM)
SERVER = Link(latency=0.002, up=3e7, down=2e7, window=WARM)
TRAFFIC = Traffic(upload=300_000, download=500_000)
NONE = Traffic(upload=0, download=0)


def simulated_phase(ranks: Sequence[Link], size: float) -> float:
    """Half of gloo's all-reduce, message by message: when the last rank has its last segment.

    A rank asks the one on its left for a segment, and offers one to the right, as soon as it has got the segment before
    the last, and sent it; for a segment to leave, it must have been asked for and offered, and the link be free.
    """
    count = len(ranks)
    per_part = max(2, -(-math.ceil(size / SEGMENT) // count))
    segments, segment = (count - 1) * per_part, size / (count * per_part)
    offered, asked, sent = [0] * count, [0] * count, [0] * count
    free, gone = [0.0] * count, [[0.0] * segments for _ in ranks]
    events: list[tuple[float, int, str, int, int]] = []

    def at(when: float, what: str, rank: int, number: int) -> None:
        heapq.heappush(events, (when, len(events) + 1000 * number, what, rank, number))

    def way(left: int) -> float:
        return ranks[left].latency + ranks[(left + 1) % count].latency

    for rank in range(count):
        for number in range(2):
            at(0.0, "ready", rank, number)
    now = 0.0
    while events:
        now, _, what, rank, number = heapq.heappop(events)
        if what == "ready":
            offered[rank] += 1
            left = (rank - 1) % count
            at(now + way(left), "asked", left, number)
        elif what == "asked":
            asked[rank] += 1
        elif number + 2 < segments:
            at(max(now, gone[rank][number]), "ready", rank, number + 2)
        while sent[rank] < min(offered[rank], asked[rank]):
            right = (rank + 1) % count
            free[rank] = max(now, free[rank]) + segment / min(ranks[rank].up, ranks[right].down)
            gone[rank][sent[rank]] = free[rank]
            at(free[rank] + way(rank), "arrived", right, sent[rank])
            sent[rank] += 1
    assert sent == [segments] * count
    return now


@pytest.mark.parametrize("size", [40, 3e5, 2.5e6, 9e6, 4e7])
@pytest.mark.parametrize("latency", [0.0, 1e-4, 0.01, 0.3])
@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_ring_takes_what_its_messages_take(count, latency, size):
    link = replace(CLIENT, latency=latency)
    simulated = 2 * simulated_phase([link] * count, size)
    assert ring(count, Traffic(upload=size, download=size), link, SERVER) == pytest.approx(simulated)


def test_the_phases_of_a_ring_have_their_own_bytes():
    simulated = simulated_phase([CLIENT] * 5, 9e6) + simulated_phase([CLIENT] * 5, 1e5)
    assert ring(5, Traffic(upload=9e6, download=1e5), CLIENT, SERVER) == pytest.approx(simulated)
    assert ring(5, Traffic(upload=9e6, download=0), CLIENT, SERVER) == pytest.approx(simulated_phase([CLIENT] * 5, 9e6))


def test_a_ring_of_unequal_links_is_no_slower_than_of_its_slowest():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = [
            Link(latency=latency, up=up, down=down, window=WARM) for latency, up, down in rng.uniform(0.1, 1, (5, 3))
        ]
        worst = Link(
            latency=max(link.latency for link in ranks),
            up=min(link.up for link in ranks),
            down=min(link.down for link in ranks),
            window=WARM,
        )
        simulated = 2 * simulated_phase(ranks, 3.0)
        bound = ring(5, Traffic(upload=3.0, download=3.0), worst, SERVER)
        assert 0.3 * bound < simulated <= bound * (1 + 1e-9)


def simulated_tree(count: int, size: float, way: float, rate: float) -> tuple[float, float]:
    """A binomial tree, node by node: when its root has everything, and when the last one has what the root sends."""
    taken = size / rate

    def children(node: int) -> list[int]:
        bits = range(count.bit_length() if node == 0 else (node & -node).bit_length() - 1)
        return [node + 2**bit for bit in bits if node + 2**bit < count]

    def complete(node: int) -> float:
        """Its link receives one message after the other."""
        free = 0.0
        for ready in sorted(map(complete, children(node))):
            free = max(ready + way, free) + taken
        return free

    def reached(node: int, since: float) -> float:
        """It sends to those first who have most to reach."""
        last, own = since, since
        for child in reversed(children(node)):
            own += taken
            last = max(last, reached(child, own + way))
        return last

    return complete(0), reached(0, 0.0)


@pytest.mark.parametrize("count", [*range(1, 18), 64, 100, 1024])
def test_a_tree_takes_what_its_messages_take(count):
    up, down = (simulated_tree(count, size, 0.02, CLIENT.up)[which] for which, size in enumerate((3e5, 5e5)))
    formula = tree(count, TRAFFIC, CLIENT, SERVER)
    if count & (count - 1) == 0:
        assert formula == pytest.approx(up + down)
    else:  # some branches are shorter
        assert 0.75 * formula < up + down <= formula * (1 + 1e-9)


def simulated_star(rates: Sequence[float], size: float, server: float) -> float:
    """All send at once to a server whose bandwidth is shared as TCP would: evenly, but for who cannot use his share."""
    left, now = dict.fromkeys(range(len(rates)), size), 0.0
    while left:
        spare, own = server, {}
        for place, client in enumerate(sorted(left, key=lambda client: rates[client])):
            own[client] = min(rates[client], spare / (len(left) - place))
            spare -= own[client]
        step = min(left[client] / own[client] for client in left)
        now += step
        left = {client: rest - step * own[client] for client, rest in left.items()}
        left = {client: rest for client, rest in left.items() if rest > 1e-9 * size}
    return now


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 500])
def test_a_star_takes_what_its_flows_take(count):
    up = simulated_star([CLIENT.up] * count, TRAFFIC.upload, SERVER.down)
    down = simulated_star([CLIENT.down] * count, TRAFFIC.download, SERVER.up)
    assert star(count, TRAFFIC, CLIENT, SERVER) == pytest.approx(up + down + 2 * 0.012)


def test_a_star_of_unequal_clients_takes_as_long_as_its_slowest_or_its_server():
    rng = np.random.default_rng(0)
    for server in (1.0, 3.0, 100.0):
        rates = rng.uniform(0.1, 1, 12).tolist()
        link = Link(latency=0, up=min(rates), down=1, window=WARM)
        formula = star(12, Traffic(upload=2, download=0), link, Link(latency=0, up=1, down=server, window=WARM))
        assert formula == pytest.approx(simulated_star(rates, 2, server))


@pytest.mark.parametrize("count", [1, 2, 9, 10, 1000])
def test_a_hierarchy_is_stars_of_stars(count):
    size = math.ceil(math.sqrt(count))
    edges = math.ceil(count / size)
    up = simulated_star([CLIENT.up] * size, 3e5, SERVER.down) + simulated_star([SERVER.up] * edges, 3e5, SERVER.down)
    down = simulated_star([CLIENT.down] * size, 5e5, SERVER.up) + simulated_star([SERVER.down] * edges, 5e5, SERVER.up)
    assert hierarchical(count, TRAFFIC, CLIENT, SERVER) == pytest.approx(up + down + 2 * (0.012 + 0.004))


def simulated_tcp(packets: int, latency: float, packet_seconds: float) -> float:
    """Slow start, packet by packet: every answer lets out the packet that it is for, and one more."""
    window, under_way, sent, free, now, last = 10, 0, 0, 0.0, 0.0, 0.0
    answers: list[float] = []
    while sent < packets or answers:
        while sent < packets and under_way < window:
            free = max(now, free) + packet_seconds
            last = free + latency
            heapq.heappush(answers, last + latency)
            sent, under_way = sent + 1, under_way + 1
        now = heapq.heappop(answers)
        under_way, window = under_way - 1, window + 1
    return last


@pytest.mark.parametrize("packets", [1, 10, 11, 40, 300, 5000])
@pytest.mark.parametrize("latency", [0.0, 0.005, 0.1])
def test_a_connection_that_was_idle_starts_up_as_packets_do(packets, latency):
    link = Link(latency=latency, up=2e6, down=2e6)
    near = Link(latency=0, up=math.inf, down=math.inf)
    formula = star(1, Traffic(upload=1448 * packets, download=0), link, near)
    packet = 1448 / 2e6
    # a packet's time for each window, by which a formula in bytes differs
    assert formula == pytest.approx(simulated_tcp(packets, latency, packet), abs=8 * packet)
    warm = star(1, Traffic(upload=1448 * packets, download=0), replace(link, window=WARM), replace(near, window=WARM))
    assert warm == pytest.approx(latency + packets * packet)


def test_the_ring_starts_up_once():
    """On 2 ranks, two segments of a quarter each way: as one message of half, and in the second phase no more."""
    cold, half = replace(CLIENT, window=WINDOW), Traffic(upload=2e6, download=0)
    both = Link(latency=CLIENT.latency, up=CLIENT.up, down=CLIENT.up)
    lost = star(1, half, both, both) - star(1, half, replace(both, window=WARM), replace(both, window=WARM))
    whole = Traffic(upload=4e6, download=4e6)
    assert lost > 0.05
    assert ring(2, whole, cold, SERVER) - ring(2, whole, CLIENT, SERVER) == pytest.approx(lost)


def test_limits():
    still, instant = replace(CLIENT, latency=0), replace(CLIENT, up=math.inf, down=math.inf)
    wide = replace(SERVER, up=math.inf, down=math.inf, latency=0)
    for name, topology in TOPOLOGIES.items():
        assert topology(100, NONE, CLIENT, SERVER) == 0, name
        times = [topology(count, TRAFFIC, CLIENT, SERVER) for count in (1, 2, 8, 64, 10**6)]
        assert times == sorted(times), name
    for topology in (ring, tree):
        assert topology(1, TRAFFIC, CLIENT, SERVER) == 0  # there is nobody to talk to
    for count in (2, 3, 50):
        assert ring(count, TRAFFIC, still, SERVER) == pytest.approx((count - 1) / count * 8e5 / 2e6)
        assert ring(count, TRAFFIC, instant, SERVER) == pytest.approx(2 * (count - 1) * 0.04)
        assert star(count, TRAFFIC, instant, wide) == pytest.approx(2 * 0.01)
        assert star(count, TRAFFIC, still, wide) == pytest.approx(3e5 / 2e6 + 5e5 / 5e6)
    crowd = star(10**6, TRAFFIC, CLIENT, SERVER)  # the server's link is all that matters
    assert crowd == pytest.approx(10**6 * (3e5 / 2e7 + 5e5 / 3e7), rel=1e-4)


@pytest.mark.parametrize("count", [1, 5, 30, 1000])
def test_the_slowest_is_the_median_of_draws(count):
    rng = np.random.default_rng(1)
    values = rng.permutation(25) + 1.0
    drawn = [Link(latency=value, up=100 * value, down=10 / value) for value in values]
    draws = rng.choice(values, (4001, count))
    found = slowest(drawn, count)
    assert found.latency == np.median(draws.max(axis=1))
    assert found.up == 100 * np.median(draws.min(axis=1))
    assert found.down == 10 / np.median(draws.max(axis=1))
    assert slowest([CLIENT], count) == CLIENT


SHORT = (
    "train.rounds=3",
    "train.local_epochs=1",
    "data.num_clients=6",
    "train.participation=0.5",
    "model.name=mlp",
    "train.batch_size=64",
)
SHORT += ("evaluate.head_epochs=1", "fault.dropout=0.3", "fault.deadline=1.5", "seed=2")


@pytest.fixture(scope="module", params=["float32", "exact"])
def run(request, tmp_path_factory) -> Path:
    """Two ranks, one of which is the server; with clients that are away and late."""
    path = tmp_path_factory.mktemp("runs") / "run"
    federate(path, 2, *SHORT, f"wire.sum={request.param}")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_facts_are_those_of_the_record(run):
    facts = forecast.read(run)
    (entry, *_) = (line for line in lines(run / "ledger.jsonl") if line["purpose"] == "aggregate")
    item = {"float32": 4, "int64": 8}[entry["dtype"]]
    assert facts.method == "fedbsd"
    assert facts.traffic.upload == pytest.approx(item * entry["elements_by_group"]["backbone"])
    assert facts.traffic.download == facts.traffic.upload
    parameters = json.loads((run / "summary.json").read_text())["parameters"]
    assert facts.fedavg.upload == pytest.approx(item * (parameters["backbone"] + parameters["head"]))
    assert facts.fedavg.download == facts.fedavg.upload
    rounds = lines(run / "metrics.jsonl")
    away = [line["faults"]["unavailable"] + line["faults"]["late"] for line in rounds]
    assert sum(map(len, away)) >= 2
    learned = sum(line["cohort"] - len(names) for line, names in zip(rounds, away, strict=True))
    busy = sum(line["seconds"]["training"] for line in rounds)  # of the one rank with clients, all its work
    assert 0.3 * busy < facts.compute * learned < busy


def test_with_a_codec_a_client_sends_codes_and_receives_floats(tmp_path):
    federate(tmp_path, 2, *SHORT, "train.rounds=2", "wire.codec=bf16")
    facts, parameters = forecast.read(tmp_path), json.loads((tmp_path / "summary.json").read_text())["parameters"]
    assert facts.traffic.upload == pytest.approx(2 * parameters["backbone"])
    assert facts.traffic.download == pytest.approx(4 * parameters["backbone"])


@pytest.mark.parametrize(("codec", "times"), [("none", 2), ("bf16", 1)])
def test_an_exact_sum_is_of_twice_the_bytes_and_a_code_is_not(codec, times, tmp_path):
    federate(tmp_path, 2, *SHORT, "train.rounds=2", f"wire.codec={codec}", "wire.sum=exact")
    facts, parameters = forecast.read(tmp_path), json.loads((tmp_path / "summary.json").read_text())["parameters"]
    model = 4 * (parameters["backbone"] + parameters["head"])
    assert facts.fedavg.download == pytest.approx(times * model)
    assert facts.traffic.download == pytest.approx(times * 4 * parameters["backbone"], rel=0.01)


def show(monkeypatch, *arguments: object) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedbsd_dist.links", *map(str, arguments)])
    try:
        links.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_the_command_writes_the_table_and_the_picture(run, tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    (tmp_path / "clients.csv").write_text("client,down_mbps,up_mbps,latency_ms\nslow,16,8,10\n")
    assert show(monkeypatch, run, f"--clients={tmp_path}/clients.csv", "--server=nvlink", f"--out={tmp_path}/new") == 0
    facts, said = forecast.read(run), capsys.readouterr().out
    link = Link(latency=0.01, up=1e6, down=2e6)
    text = (tmp_path / "new" / "links.md").read_text()
    assert f"of {facts.method}: {size(facts.traffic.upload)} up" in text
    grid = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert grid[0][:3] == ["clients", "ring, fedbsd", "ring, full model"]
    assert [row[0] for row in grid[2:]] == ["1", "10", "100", "1,000", "10,000", "100,000", "1,000,000"]
    assert grid[2][1:5] == ["0"] * 4  # alone in a ring, in a tree
    expected = star(1, facts.traffic, link, links.PRESETS["nvlink"].link)
    assert grid[2][7] == (f"{1000 * expected:.3g} ms" if expected < 1 else f"{expected:.1f} s")
    for row in grid[2:]:
        assert [*row] == next(line for line in map(cells, said.splitlines()) if line[:1] == row[:1])
    assert "ceil(log2 n) steps" in text
    assert "ceil(log2 n) steps" in said
    assert "Written" not in said
    with Image.open(io.BytesIO((tmp_path / "new" / "links.png").read_bytes())) as image:
        image.load()
        assert image.format == "PNG"
    (axes,) = figures[0].axes
    curves = {line.get_label(): line for line in axes.lines}
    assert len(curves) == 2 * len(TOPOLOGIES) + 1
    at, times = curves["star, full model"].get_data()
    assert (at[0], at[-1]) == (1, 10**6)
    assert times[0] == star(1, facts.fedavg, link, links.PRESETS["nvlink"].link)
    assert np.isnan(curves["ring, fedbsd"].get_ydata()[0])  # nothing, which has no logarithm
    assert set(curves["local learning of a client"].get_ydata()) == {facts.compute}


def cells(line: str) -> list[str]:
    """Of a table for the console."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_unless_told_otherwise_it_is_broadband_and_written_beside_the_run(run, monkeypatch, capsys):
    assert show(monkeypatch, run) == 0
    said = capsys.readouterr().out
    assert "broadband: 20 Mbit/s up" in said
    assert "10gbe: 10 Gbit/s" in said
    for name in ("links.md", "links.png"):
        (run / name).unlink()


HEAD = "client,latency_ms,up_mbps,down_mbps\n"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "line 1: should be client,latency_ms,up_mbps,down_mbps"),
        ("client,latency_ms,up_mbps\n", "line 1: should be"),
        ("client,latency_ms,up_mbps,down_mbps,down_mbps\n", "line 1: should be"),
        ("client,latency_ms,up_mbps,down_mbps,loss\n", "line 1: unknown column 'loss'"),
        (HEAD, "has no client"),
        (HEAD + "a,1,2\n", "line 2: has 3 cells where the first line has 4"),
        (HEAD + "a,1,2,3,4\n", "line 2: has 5 cells"),
        (HEAD + "a,1,2,3\n\nb,1,2,3\n", "line 3: has 0 cells"),
        (HEAD + "a,1,2,3\n,1,2,3\n", "line 3: names no client"),
        (HEAD + "a,1,2,3\nb,1,2,3\na,1,2,3\n", "line 4: client a is there twice"),
        (HEAD + "a,1,,3\n", "line 2: up_mbps=: should be a number above 0"),
        (HEAD + "a,1,0,3\n", "line 2: up_mbps=0: should be a number above 0"),
        (HEAD + "a,1,2,-3\n", "line 2: down_mbps=-3: should be a number above 0"),
        (HEAD + "a,1,fast,3\n", "line 2: up_mbps=fast"),
        (HEAD + "a,1,nan,3\n", "line 2: up_mbps=nan"),
        (HEAD + "a,1,inf,3\n", "line 2: up_mbps=inf"),
        (HEAD + "a,-1,2,3\n", "line 2: latency_ms=-1: should be a number of 0 or more"),
        (HEAD + 'a,1,2,"3\n', "cannot be read as a table"),
        ("\ud800", "cannot be read as a table"),
    ],
)
def test_a_table_with_gaps_is_refused(tmp_path, text, wrong):
    path = tmp_path / "clients.csv"
    path.write_bytes(text.encode("utf-16" if text == "\ud800" else "utf-8", errors="surrogatepass"))
    with pytest.raises(UserError) as refused:
        links.read_clients(path)
    assert wrong in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_table_as_spreadsheets_write_it_is_read(tmp_path):
    path = tmp_path / "clients.csv"
    path.write_bytes(b"\xef\xbb\xbfclient, latency_ms ,up_mbps,down_mbps\r\na,5,8,16\r\n")
    assert links.read_clients(path) == [Link(latency=0.005, up=1e6, down=2e6)]


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (
            ["{run}", "--links=broadbend"],
            "--links=broadbend: no such links. There are nvlink, 100gbe, 10gbe, broadband",
        ),
        (["{run}", "--links=broadbend"], "Did you mean broadband?"),
        (["{run}", "--server=lan"], "--server=lan: no such links"),
        (["{run}", "--links=lte", "--clients=x.csv"], "contradict"),
        (["{run}", "--clients={run}/none.csv"], "cannot be read as a table (No such file"),
        (["{run}/tensorboard"], "is no finished run to read (summary.json: No such file"),
        (["{run}", "{run}"], "Name one run directory"),
        (["{run}", "--speed=1"], "no such flag"),
        (["{run}", "--out={run}/config.yaml"], "cannot write files there"),
    ],
)
def test_what_the_user_can_mend_is_told_and_nothing_is_written(run, monkeypatch, capsys, arguments, wrong):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert show(monkeypatch, *(argument.format(run=run) for argument in arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert wrong in said.err
    assert len(said.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_record_is_told(run, tmp_path):
    for name in ("summary.json", "metrics.jsonl", "config.yaml", "ledger.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    whole = forecast.read(tmp_path)
    for name, text in (("ledger.jsonl", '{"purpose": "aggregate"}\n'), ("config.yaml", "a: [\n"), ("ledger.jsonl", "")):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"is no finished run to read .{name}"):
            links.links([str(tmp_path)])
        (tmp_path / name).write_bytes(kept)
    assert forecast.read(tmp_path) == whole
