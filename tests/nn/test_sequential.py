"""Sequential: states threaded, time folded and published, and errors in words."""

import pytest
import torch

from plexus.errors import ShapeError, UnsupportedError
from plexus.nn import LIF, RecurrentLIF, Sequential, Stateful


def network():
    return Sequential(
        torch.nn.Linear(5, 8), LIF(8, threshold=0.3), torch.nn.Linear(8, 4), RecurrentLIF(4, threshold=0.1)
    )


def test_equals_the_layers_by_hand():
    net, x = network(), torch.rand(9, 3, 5)
    hidden, first = net[1](net[0](x))
    out, second = net[3](net[2](hidden))
    found, states = net(x)
    assert torch.equal(found, out)
    assert states[0] is states[2] is None
    assert torch.equal(states[1].v, first.v)
    assert torch.equal(states[3].v, second.v)


def test_goes_on_from_its_states():
    net, x = network().double(), torch.rand(9, 3, 5, dtype=torch.float64)
    whole, after = net(x)
    state, pieces = None, []
    for piece in x.split([2, 1, 6]):
        out, state = net(piece, state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(state[3].v, after[3].v)
    torch.testing.assert_close(net(x, net.initial_state(3, dtype=torch.float64))[0], whole)


def test_nests():
    net = Sequential(torch.nn.Linear(5, 5), Sequential(LIF(5), torch.nn.Linear(5, 2)))
    out, states = net(torch.rand(4, 3, 5))
    assert out.shape == (4, 3, 2)
    assert isinstance(states[1], tuple)
    assert isinstance(net, Stateful)


def test_images_over_time_equal_each_image_alone():
    stack = [torch.nn.Conv2d(1, 3, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(27, 4)]
    net, x = Sequential(*stack), torch.rand(5, 2, 1, 8, 8)
    out, _ = net(x)
    for t in range(5):
        torch.testing.assert_close(out[t], torch.nn.Sequential(*stack)(x[t]))


def test_spiking_feature_maps():
    net = Sequential(torch.nn.Conv2d(1, 3, 3), LIF((3, 6, 6)), torch.nn.Flatten(), torch.nn.Linear(108, 2), LIF(2))
    out, states = net(torch.rand(5, 2, 1, 8, 8))
    assert out.shape == (5, 2, 2)
    assert states[1].v.shape == (2, 3, 6, 6)


def test_fold_is_published_while_a_layer_runs_and_gone_afterwards():
    seen = {}

    class Watched(torch.nn.Linear):
        def forward(self, x):
            seen["fold"] = self._plexus_fold
            return super().forward(x)

    inner = torch.nn.Sequential(torch.nn.Identity(), Watched(5, 5))
    net = Sequential(inner, LIF(5))
    net(torch.rand(7, 3, 5))
    assert seen["fold"] == (7, 3)
    assert not any(hasattr(module, "_plexus_fold") for module in net.modules())
    with pytest.raises(RuntimeError):
        net(torch.rand(7, 3, 6))
    assert not any(hasattr(module, "_plexus_fold") for module in net.modules())


class Pair(torch.nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((Pair(), torch.nn.Linear(5, 2)), "returned a tuple where the next layer needs a tensor"),
        ((torch.nn.Sequential(torch.nn.Linear(5, 5), LIF(5)),), "holds LIF at '1'"),
        ((torch.nn.LSTM(5, 5),), "time dimension of its own"),
    ],
)
def test_tuple_that_reaches_an_ordinary_module_is_an_error_in_words(layers, words):
    with pytest.raises(UnsupportedError, match=words):
        Sequential(*layers)(torch.rand(4, 3, 5))


def test_layer_that_mixes_rows_is_refused():
    with pytest.raises(ShapeError, match="rows"):
        Sequential(torch.nn.Flatten(0))(torch.rand(4, 3, 5))


@pytest.mark.parametrize("state", [(None,), [None] * 5, 3])
def test_states_that_do_not_match(state):
    with pytest.raises(ShapeError, match="states do not match"):
        network()(torch.rand(4, 3, 5), state)


@pytest.mark.parametrize("x", [torch.rand(4), "spikes", (torch.rand(4, 3, 5), None)])
def test_input_without_time_and_batch(x):
    with pytest.raises(ShapeError, match="time and batch"):
        network()(x)
