"""Recurrent: any neuron, any wiring; one result whether fused, sparse or step by step; edits act inside the loop."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import plexus as px
from plexus.errors import ShapeError, UnsupportedError
from plexus.nn import LIF, Recurrent, RecurrentLIF, Sequential, Stateful
from plexus.units import Neurons, Port, Site, sites


def drive(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Memory(NamedTuple):
    v: Tensor
    z: Tensor


class Foreign(nn.Module):
    """A neuron that knows of no recurrent weight."""

    units = 12
    axes = "t b u"
    port: Port | None = None

    def initial_state(self, batch, *, dtype=None):
        return Memory(*(torch.zeros(batch, self.units, dtype=dtype) for _ in range(2)))

    def forward(self, x, state=None):
        spikes, state = LIF(self.units, 5.0, threshold=0.4).double()(x, None if state is None else self._full(state))
        return spikes, Memory(state.v, state.z)

    def _full(self, state):
        return px.nn.LIFState(state.v, state.z, torch.zeros_like(state.v))


@pytest.mark.parametrize("autapses", [False, True])
def test_all_ways_to_the_same_layer_agree(autapses):
    weight = drive(12, 12) - 0.4
    mask = drive(12, 12, seed=1) < 0.4
    x = drive(15, 3, 12, seed=2)
    layers = [
        Recurrent(LIF(12, 5.0, threshold=0.4), weight=weight, mask=mask, autapses=autapses, sparse=sparse)
        for sparse in (False, True)
    ] + [Recurrent(Foreign(), weight=weight, mask=mask, autapses=autapses)]
    found = []
    for layer in layers:
        layer.double()
        with torch.no_grad():
            layer.weight += 0.3  # what is not in the mask stays out of the loop
        leaf = x.clone().requires_grad_()
        out, state = layer(leaf)
        ramp = torch.arange(15).view(-1, 1, 1).sin()
        g, d_weight = torch.autograd.grad((out * ramp).sum() + state.v.sum(), [leaf, layer.weight])
        if layer.sparse:
            d_weight = layer._recurrent()._replace(values=d_weight).dense()
        found.append((layer.matrix(), out, state.v, g, d_weight))
    exists = mask if autapses else mask & ~torch.eye(12, dtype=torch.bool)
    assert torch.equal(found[0][0] != 0, exists)
    assert found[0][1].any()
    for other in found[1:]:
        assert torch.equal(other[1], found[0][1])
        torch.testing.assert_close(other, found[0])


def test_recurrent_lif_is_lif_in_a_recurrent_layer():
    layer = RecurrentLIF(9, 6.0, threshold=0.3, autapses=True, generator=torch.Generator().manual_seed(1)).double()
    same = Recurrent(LIF(9, 6.0, threshold=0.3), weight=layer.weight, autapses=True).double()
    same.weight.data = layer.weight.data
    x = drive(12, 2, 9)
    assert torch.equal(layer(x)[0], same(x)[0])
    assert layer(x)[0].any()


def test_default_weights_follow_the_number_of_synapses():
    mask = torch.rand(400, 400, generator=torch.Generator().manual_seed(0)) < 0.1
    layer = Recurrent(LIF(400), mask=mask, sparse=True, weight_gain=0.5, generator=torch.Generator().manual_seed(1))
    assert layer.weight.std().item() == pytest.approx(0.5 / 40**0.5, rel=0.02)
    assert not layer.matrix().diag().any()
    again = Recurrent(LIF(400), mask=mask, weight_gain=0.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.matrix(), layer.matrix())
    assert "synapses, sparse" in repr(layer)


def test_feature_maps_drive_one_another():
    layer = Recurrent(LIF((2, 3, 3), 5.0, threshold=0.3)).double()
    out, state = layer(drive(6, 2, 2, 3, 3))
    assert out.shape == (6, 2, 2, 3, 3)
    assert state.z.shape == (2, 2, 3, 3)
    assert layer.axes == "t b u y x"


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("path", ["0", "0.neuron"])
def test_a_silenced_unit_is_silent_for_its_targets(sparse, path):
    chain = torch.diag(torch.full((3,), 2.0), -1)
    net = Sequential(Recurrent(LIF(4, tau_mem=1e-3, reset="hard"), weight=chain, mask=chain != 0, sparse=sparse))
    x = torch.zeros(6, 1, 4)
    x[0, 0, 0] = 2.0
    free = net(x)[0]
    assert free.nonzero()[:, [0, 2]].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    site = Site(path, "t b u")
    silenced = Neurons.of({site: 4}, {site: [1]})
    with px.edit.scale(net, silenced, 0.0):
        assert net(x)[0].nonzero()[:, [0, 2]].tolist() == [[0, 0]]
    assert torch.equal(net(x)[0], free)


def test_it_is_a_layer_with_a_state():
    layer = Recurrent(LIF(5))
    assert isinstance(layer, Stateful)
    x = drive(9, 2, 5).float()
    whole, after = layer(x)
    first, state = layer(x[:4])
    second, state = layer(x[4:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(state.v, after.v)
    clone = Recurrent(LIF(5))
    clone.load_state_dict(layer.state_dict())
    assert torch.equal(clone(x)[0], whole)


def test_its_units_are_found_once():
    net = Sequential(nn.Linear(3, 4), Recurrent(LIF(4)), LIF(4))
    assert sites.spiking(net) == [Site("1", "t b u"), Site("2", "t b u")]


class Net(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) < 0.5
        self.stack = Sequential(
            nn.Linear(6, 8),
            LIF(8, 5.0, threshold=0.3, learn=("tau_mem",)),
            Recurrent(LIF(8, 5.0, threshold=0.3, learn=("threshold",)), mask=mask, sparse=sparse),
            RecurrentLIF(8, threshold=0.2),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        out, _ = self.stack(x)
        return out.mean(0)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
class TestCompilers:
    def test_compile_in_one_graph(self, sparse):
        net, x = Net(sparse), torch.rand(5, 3, 6)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        expected = net(x)
        torch.testing.assert_close(compiled(x), expected)
        expected.sum().backward()
        wanted = [p.grad.clone() for p in net.parameters()]
        assert all(g.any() for g in wanted[:-1])
        net.zero_grad()
        compiled(x).sum().backward()
        for p, g in zip(net.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, g)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x))

    def test_export(self, sparse):
        net, x = Net(sparse), torch.rand(5, 3, 6)
        program = torch.export.export(net, (x,))
        assert any("plexus.lif_recurrent" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x), net(x))


def test_bad_input():
    with pytest.raises(ShapeError, match="the mask does not fit"):
        Recurrent(LIF(3), mask=torch.ones(2, 2))
    with pytest.raises(ShapeError, match="the weight does not fit"):
        Recurrent(LIF(3), weight=torch.ones(3))
    with pytest.raises(ShapeError, match="does not fit the layer"):
        Recurrent(LIF(3))(torch.rand(4, 2, 5))
    readout = LIF(3)
    readout.initial_state = lambda batch, **_: (torch.zeros(batch, 3),)
    with pytest.raises(UnsupportedError, match="does not remember"):
        Recurrent(readout)


NEURONS = {
    "IF": lambda: px.nn.IF(6, threshold=0.5),
    "PLIF": lambda: px.nn.PLIF(6, threshold=0.4),
    "ALIF": lambda: px.nn.ALIF(6, threshold=0.4),
    "CUBA": lambda: px.nn.CUBA(6, threshold=0.4),
    "COBA": lambda: px.nn.COBA(6),
    "AdEx": lambda: px.nn.AdEx(6, substeps=1),
    "AdEx in substeps": lambda: px.nn.AdEx(6, substeps=2),
    "Izhikevich": lambda: px.nn.Izhikevich(6),
    "Resonate": lambda: px.nn.ResonateAndFire(6),
    "TwoCompartment": lambda: px.nn.TwoCompartment(6),
}
STRONG = {"COBA": 0.8, "AdEx": 5000.0, "AdEx in substeps": 5000.0, "Izhikevich": 25.0}


@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron_fused_equals_step_by_step(name):
    neuron = NEURONS[name]().double()
    scale = STRONG.get(name, 1.0)
    layer = Recurrent(neuron, weight=scale * (drive(6, 6) - 0.3)).double()
    x = scale * drive(40, 2, 6, seed=1) * 2
    fused, state = layer(x)
    assert layer._fused == (name != "AdEx in substeps")
    weight, outputs, after = layer.matrix().T, [], neuron.initial_state(2, dtype=torch.float64)
    for now in x.split(1):
        back = after.z @ weight
        if name == "COBA":
            exc, inh = layer.matrix().clamp(min=0), (-layer.matrix()).clamp(min=0)
            out, after = neuron((now + after.z @ exc.T, (after.z @ inh.T).expand_as(now)), after)
        else:
            out, after = neuron(now + back, after)
        outputs.append(out)
    assert 0 < fused.count_nonzero() < fused.numel()
    assert torch.equal(fused, torch.cat(outputs))
    torch.testing.assert_close(tuple(state), tuple(after))
