"""NIR out and in: the round trip is exact, what NIR cannot say is refused, and graphs compute what they draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from plexus.errors import FormatError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from plexus.nn import ALIF, CUBA, IF, LIF, LeakyIntegrator, Recurrent, RecurrentLIF, Sequential, parametrize_
from plexus.nn.interop import (
    Delay,
    GraphNetwork,
    Scale,
    exchange_table,
    from_nir,
    load_nir,
    save_nir,
    to_nir,
)
from plexus.nn.interop._table import markdown
from plexus.nn.synapses import (
    Convolution,
    DelayedConv2d,
    DelayedLinear,
    Dense,
    ExponentialSynapse,
    GapJunctions,
    Lateral,
    Sparse,
    dale_signs,
    ring_distance,
)

nir = pytest.importorskip("nir")

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "exchange.md"
HARD = {"reset": "hard", "reset_value": -0.1}


def taus(*sizes: int) -> torch.Tensor:
    return 3 + 10 * torch.rand(*sizes)


NETWORKS = {
    "lif": lambda: [nn.Linear(5, 4), LIF(4, taus(4), 0.3, rest=0.05, **HARD), nn.Linear(4, 3, bias=False)],
    "lif scaled": lambda: [nn.Linear(5, 4), LIF(4, 7.0, 0.05, scale_input=True, **HARD)],
    "lif euler": lambda: [nn.Linear(5, 4), LIF(4, 7.0, 0.3, dt=0.5, discretisation="euler", **HARD)],
    "lif with a gain": lambda: [nn.Linear(5, 4), LIF(4, 7.0, 0.3, gain=torch.tensor([0.5, 1, 2, 3]), **HARD)],
    "if": lambda: [nn.Linear(5, 4), IF(4, 0.7, dt=0.5, **HARD)],
    "cuba": lambda: [nn.Linear(5, 4), CUBA(4, taus(4), 4.0, threshold=0.8, **HARD)],
    "cuba of area one": lambda: [nn.Linear(5, 4), CUBA(4, 9.0, 4.0, threshold=0.1, norm="area", **HARD)],
    "cuba scaled": lambda: [nn.Linear(5, 4), CUBA(4, 9.0, 4.0, threshold=0.1, scale_input=True, **HARD)],
    "readouts": lambda: [nn.Linear(5, 4), LeakyIntegrator(4, taus(4), rest=0.1), LeakyIntegrator(4, float("inf"))],
    "synapse": lambda: [ExponentialSynapse(5, 3.0), nn.Linear(5, 4), LIF(4, 5.0, 0.5, **HARD)],
    "recurrent": lambda: [nn.Linear(5, 4), Recurrent(LIF(4, 5.0, 0.3, **HARD)), nn.Linear(4, 2)],
    "recurrent lif": lambda: [nn.Linear(5, 4), RecurrentLIF(4, 5.0, 0.3, weight_gain=2.0, **HARD)],
    "recurrent cuba": lambda: [nn.Linear(5, 4), Recurrent(CUBA(4, 9.0, 3.0, threshold=0.3, **HARD), autapses=True)],
    "delays": lambda: [
        DelayedLinear(5, 4, 6, bias=True).round_().hard(True),
        LIF(4, 5.0, 0.3, **HARD),
        DelayedLinear(4, 3, 4).round_().hard(True),
    ],
    "delay line and scale": lambda: [Delay(torch.tensor([0, 1, 5, 2, 2])), Scale(torch.rand(5)), nn.Linear(5, 4)],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    net = Sequential(*NETWORKS[name]())
    save_nir(net, tmp_path / "net.nir")
    again = load_nir(tmp_path / "net.nir")
    assert isinstance(again, Sequential)
    x = torch.rand(40, 3, 5)
    out, _ = net(x)
    assert torch.equal(again(x)[0], out)
    assert float((out != 0).double().mean()) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["net.nir"]
    # and what was read can be written and read again
    assert torch.equal(from_nir(to_nir(again))(x)[0], out)


def test_convolutions_and_pools() -> None:
    net = Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        LIF((3, 8, 8), 4.0, 0.1, **HARD),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3, stride=2, groups=1),
        IF((4, 1, 1), 0.05, **HARD),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 2),
    ).eval()
    x = (torch.rand(12, 2, 2, 8, 8) < 0.4).float()
    with pytest.raises(ShapeError, match="example"):
        to_nir(net)
    graph = to_nir(net, x)
    again = from_nir(graph)
    assert torch.equal(again(x)[0], net(x)[0])
    assert again[0].bias is None
    assert graph.nodes["5"].output_type["output"].tolist() == [4]


SYNAPSES = {
    "dense": lambda: Dense(5, 4, bias=True),
    "masked, with signs": lambda: Dense(5, 4, mask=torch.rand(4, 5) < 0.5, signs=dale_signs(5, 0.6)),
    "signs by parametrization": lambda: parametrize_(Dense(5, 4, signs=dale_signs(5, 0.6))),
    "sparse": lambda: Sparse(torch.rand(4, 5) < 0.5),
    "lateral": lambda: Lateral(ring_distance(5)),
    "gap junctions": lambda: GapJunctions(torch.ones(5, 5, dtype=torch.bool), 0.3),
}


@pytest.mark.parametrize("name", SYNAPSES)
def test_linear_synapses_become_linear_maps(name: str) -> None:
    layer = SYNAPSES[name]()
    graph = to_nir(layer)
    kind = "Affine" if getattr(layer, "bias", None) is not None else "Linear"
    assert [type(node).__name__ for node in graph.nodes.values()] == ["Input", kind, "Output"]
    x = torch.rand(6, 2, 5)
    torch.testing.assert_close(from_nir(graph)(x)[0], layer(x))


@pytest.mark.parametrize(
    "layer",
    [Convolution(2, 3, 3, padding=1, bias=True), DelayedConv2d(2, 3, 3, 4, padding=1, stride=2).round_().hard(True)],
    ids=["convolution", "delayed"],
)
def test_convolutional_synapses(layer: nn.Module) -> None:
    net = Sequential(layer)
    x = torch.rand(9, 2, 2, 7, 7)
    torch.testing.assert_close(from_nir(to_nir(net, x))(x)[0], net(x)[0])


def test_a_layer_that_is_used_twice_is_written_twice() -> None:
    twice = nn.Linear(4, 4)
    net = Sequential(twice, LIF(4, 5.0, 0.2, **HARD), twice, LIF(4, 5.0, 0.2, **HARD))
    x = torch.rand(20, 2, 4)
    assert torch.equal(from_nir(to_nir(net))(x)[0], net(x)[0])


def test_sums_over_patches_go_both_ways() -> None:
    net = Sequential(nn.AvgPool2d(2, divisor_override=1))
    x = torch.rand(3, 2, 2, 6, 6)
    graph = to_nir(net, x)
    assert type(graph.nodes["0"]).__name__ == "SumPool2d"
    torch.testing.assert_close(from_nir(graph)(x)[0], net(x)[0])


def test_a_subclass_may_compute_something_else() -> None:
    class Noisy(LIF):
        pass

    with pytest.raises(UnsupportedError, match="no node"):
        to_nir(Sequential(nn.Linear(4, 4), Noisy(4, **HARD)))


def test_only_graphs_with_one_way_in_and_out() -> None:
    sizes = {"input": np.array([2])}
    graph = nir.NIRGraph(
        {
            "a": nir.Input(sizes),
            "b": nir.Input(sizes),
            "w": nir.Linear(np.eye(2)),
            "out": nir.Output({"output": np.array([2])}),
        },
        [("a", "w"), ("b", "w"), ("w", "out")],
    )
    with pytest.raises(UnsupportedError, match="one input"):
        from_nir(graph)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (LIF(4), "'soft' reset"),
        (LIF(4, reset="none"), "'none' reset"),
        (LIF(4, reset="hard", refractory=2.0), "refractory"),
        (LIF(4, reset="hard", smooth=True), "smooth"),
        (DelayedConv2d(4, 4, 3, 2), "spread over several steps"),
        (LIF(4, reset="hard", inclusive=True), "threshold itself"),
        (LIF(4, reset="hard", delayed_reset=True), "one step later"),
        (CUBA(4, tau_rise=1.0, reset="hard"), "rises"),
        (ALIF(4, reset="hard"), "no node"),
        (DelayedLinear(4, 4, 3), "spread over several steps"),
        (nn.MaxPool2d(2), "no node"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "circular"),
    ],
)
def test_what_nir_cannot_say_is_refused_with_the_layer_named(layer: nn.Module, why: str) -> None:
    shape = (4, 6, 6) if isinstance(layer, nn.MaxPool2d | nn.Conv2d | DelayedConv2d) else (4,)
    with pytest.raises(UnsupportedError, match=rf"layer 0 \({type(layer).__name__}\).*{why}"):
        to_nir(Sequential(layer), torch.zeros(1, 1, *shape))


def test_layers_that_disagree_on_a_step_are_refused_where_it_matters() -> None:
    net = Sequential(DelayedLinear(3, 3, 2).round_().hard(True), LIF(3, dt=0.5, **HARD), LIF(3, dt=1.0, **HARD))
    with pytest.raises(UnsupportedError, match="length of a step"):
        to_nir(net)


def test_a_graph_of_another_tool(tmp_path: Path) -> None:
    """Equations alone, no metadata: an Euler reader gets the textbook steps."""
    graph = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([2])}),
            "w": nir.Affine(np.array([[1.0, 0.5], [0.2, 0.9]]), np.array([0.1, 0.0])),
            "lif": nir.LIF(
                tau=np.array([0.01, 0.02]),
                r=np.array([1.0, 3.0]),
                v_leak=np.array([0.0, 0.1]),
                v_threshold=np.array([0.4, 0.3]),
                v_reset=np.array([0.0, -0.1]),
            ),
            "output": nir.Output({"output": np.array([2])}),
        },
        [("input", "w"), ("w", "lif"), ("lif", "output")],
    )
    net = from_nir(graph, dt=0.5, discretisation="euler").double()
    x = torch.rand(60, 1, 2, dtype=torch.float64)
    v, spikes = np.array([0.0, 0.1]), []
    for row in x[:, 0].numpy():
        current = graph.nodes["w"].weight @ row + graph.nodes["w"].bias
        lif = graph.nodes["lif"]
        v = v + 0.0005 / lif.tau * (lif.v_leak - v + lif.r * current)
        z = v > lif.v_threshold
        v = np.where(z, lif.v_reset, v)
        spikes.append(z.astype(float))
    assert 0.02 < np.mean(spikes) < 0.9
    assert np.array_equal(net(x)[0][:, 0].detach().numpy(), np.array(spikes))
    with pytest.raises(UnsupportedError, match="Euler"):
        from_nir(graph, dt=20.0, discretisation="euler")


def skip_graph() -> GraphNetwork:
    """A feed-forward path, a path around it, and two populations in a loop."""
    nodes = {
        "a": nn.Linear(3, 4),
        "e": LIF(4, 5.0, 0.3, **HARD),
        "to i": nn.Linear(4, 2, bias=False),
        "i": LIF(2, 5.0, 0.2, **HARD),
        "to e": nn.Linear(2, 4, bias=False),
        "skip": nn.Linear(3, 4, bias=False),
        "out": LeakyIntegrator(4, 5.0),
    }
    edges = [
        ("input", "a"),
        ("a", "e"),
        ("e", "to i"),
        ("to i", "i"),
        ("i", "to e"),
        ("to e", "e"),
        ("e", "out"),
        ("input", "skip"),
        ("skip", "out"),
        ("out", "output"),
    ]
    return GraphNetwork(nodes, edges)


def test_a_graph_computes_what_it_draws_and_round_trips() -> None:
    net = skip_graph()
    x = torch.rand(25, 2, 3)
    e_state = i_state = out_state = None
    e, i, expected = torch.zeros(2, 4), torch.zeros(2, 2), []
    for t in range(25):
        row = x[t : t + 1]
        new_e, e_state = net["e"](net["a"](row) + (net["to e"](i) if t else 0), e_state)
        if t:
            new_i, i_state = net["i"](net["to i"](e).unsqueeze(0), i_state)
            i = new_i[0]
        e = new_e[0]
        out, out_state = net["out"](new_e + net["skip"](row), out_state)
        expected.append(out)
    found, state = net(x)
    torch.testing.assert_close(found, torch.cat(expected))
    first, between = net(x[:9])
    second, _ = net(x[9:], between)
    assert torch.equal(torch.cat([first, second]), found)
    again = from_nir(to_nir(net))
    assert isinstance(again, GraphNetwork)
    torch.testing.assert_close(again(x)[0], found)
    assert state.nodes[1].v.shape == (2, 4)


def test_bad_graphs_and_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="node"):
        GraphNetwork({"a": nn.Linear(2, 2)}, [("input", "b"), ("a", "output")])
    with pytest.raises(UnsupportedError, match="output"):
        GraphNetwork({"a": nn.Linear(2, 2)}, [("input", "a")])
    with pytest.raises(UnsupportedError, match="loop"):
        GraphNetwork({"a": nn.Linear(2, 2)}, [("input", "a"), ("a", "a"), ("a", "output")])
    with pytest.raises(FormatError, match="no such file"):
        load_nir(tmp_path / "none.nir")
    (tmp_path / "text.nir").write_text("not HDF5")
    with pytest.raises(FormatError, match="no NIR graph"):
        load_nir(tmp_path / "text.nir")
    with pytest.raises(FormatError):
        from_nir("net.nir")
    with pytest.raises(RangeError):
        from_nir(to_nir(Sequential(nn.Linear(2, 2))), dt=0.0)
    graph = to_nir(Sequential(Delay(torch.tensor([1, 3])), LIF(2, **HARD)))
    with pytest.raises(RangeError, match="whole numbers of steps"):
        from_nir(graph, dt=0.7)
    with pytest.raises(RangeError):
        Delay(torch.tensor([0.5]))
    with pytest.raises(ShapeError):
        Delay(3)


@pytest.mark.parametrize("pieces", [(12,), (1, 11), (3, 3, 6)])
def test_a_delay_line_shifts_each_unit_by_its_own_delay(pieces: tuple[int, ...]) -> None:
    x, delays = torch.rand(12, 2, 3), torch.tensor([0, 4, 1])
    line, state, parts = Delay(delays), None, []
    for piece in x.split(list(pieces)):
        out, state = line(piece, state)
        parts.append(out)
    found = torch.cat(parts)
    for unit, steps in enumerate(delays.tolist()):
        expected = torch.cat([torch.zeros(steps, 2), x[: 12 - steps, :, unit]])
        assert torch.equal(found[:, :, unit], expected)


def test_the_table_says_what_exporting_does() -> None:
    rows = {row["layer"]: row for row in exchange_table()}
    assert rows["LIF"]["NIR"] == "LIF"
    assert rows["CUBA"]["NIR"] == "CubaLIF"
    assert rows["LeakyIntegrator"]["NIR"] == "LI"
    assert rows["Recurrent(LIF)"]["NIR"] == "LIF, Linear"
    assert rows["DelayedLinear"]["NIR"] == "Delay, Linear"
    assert rows["ALIF"]["NIR"].startswith("no: ")
    assert rows["Sparse"]["NIR"] == "Linear"
    assert (rows["RecurrentLIF"]["snnTorch"], rows["RecurrentLIF"]["Norse"]) == ("no", "yes")
    assert set(rows["LIF"]) == {"layer", "NIR", "snnTorch", "Norse", "from weights of"}


def test_the_page_shows_the_table_of_today() -> None:
    shown = PAGE.read_text().partition("<!-- table -->\n")[2].partition("<!-- end of table -->")[0]
    assert shown.strip() == markdown().strip(), "run python -m plexus.nn.interop._table docs/guides/exchange.md"
