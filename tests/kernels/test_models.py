"""Every model's adjoint is the derivative of its step, and its fused loop does what the eager reference does.

A model that is new is added to `MODELS`.
"""

import itertools

import pytest
import torch

from plexus.kernels import Surrogate
from plexus.kernels._adex_model import ADEX_DYNAMICS
from plexus.kernels._alif_model import ALIF_DYNAMICS
from plexus.kernels._coba_model import COBA_DYNAMICS
from plexus.kernels._cuba_model import CUBA_DYNAMICS
from plexus.kernels._frame import options_from, options_key
from plexus.kernels._izhikevich_model import IZHIKEVICH_DYNAMICS
from plexus.kernels._leaky_model import LEAKY_DYNAMICS
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._resonate_model import BALANCED_DYNAMICS, RESONATE_DYNAMICS
from plexus.kernels._two_compartment_model import TWO_COMPARTMENT_DYNAMICS

MODELS = [
    LIF_DYNAMICS, LEAKY_DYNAMICS, CUBA_DYNAMICS, COBA_DYNAMICS, ALIF_DYNAMICS, ADEX_DYNAMICS, IZHIKEVICH_DYNAMICS,
    RESONATE_DYNAMICS, BALANCED_DYNAMICS, TWO_COMPARTMENT_DYNAMICS,
]  # fmt: skip
NO_SOFT_RESET = (COBA_DYNAMICS, RESONATE_DYNAMICS)
SURROGATE = Surrogate("sigmoid", width=1.7, height=0.6)
UNITS = 5


def choices(dynamics):
    """All combinations of a model's options."""
    resets = ("hard", "none") if dynamics in NO_SOFT_RESET else ("soft", "hard", "none")
    words = {name: resets if name == "reset" else (False, True) for name in dynamics.options}
    if dynamics.has_port:
        words["port"] = (False, True)
    for chosen in itertools.product(*words.values()):
        yield dict(zip(words, chosen, strict=True)) | {"smooth": True, "surrogate": "sigmoid"}


@pytest.mark.parametrize("dynamics", MODELS, ids=lambda d: d.name)
def test_adjoint_is_the_derivative_of_the_step(dynamics):
    generator = torch.Generator().manual_seed(5)

    def uniform(low, high):
        return low + (high - low) * torch.rand(UNITS, generator=generator, dtype=torch.float64)

    def check(chosen):
        o = options_from(dynamics, options_key(dynamics, chosen))
        inputs = [uniform(-1.0, 1.5).requires_grad_() for _ in dynamics.inputs]
        states = [uniform(0.1, 1.6).requires_grad_() for _ in dynamics.states]
        counters = [(uniform(0, 1) > 0.5).double() for _ in dynamics.counters]
        parameters = [uniform(0.1, 1.6).requires_grad_() for _ in dynamics.parameters]
        ports = [torch.full((UNITS,), n, dtype=torch.float64) for n in (0.7, 0.1, 0.2, 0.6)]  # some of it clips
        settings = ports[: len(dynamics.settings)]
        constants = [2.0 if name == "period" else 0.5 for name in dynamics.constants]
        arguments = (*inputs, *states, *counters, *parameters, *settings)
        out = dynamics.step(*arguments, *constants, SURROGATE.smooth, o)[: 1 + len(dynamics.states)]
        weights = [uniform(-1.0, 1.0) for _ in out]
        loss = sum((a * w).sum() for a, w in zip(out, weights, strict=True))
        leaves = [*inputs, *states, *parameters]
        expected = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        plain = [t.detach() for t in arguments]
        found = dynamics.adjoint(*plain, *constants, *weights, SURROGATE.smooth, SURROGATE.derivative, o)
        names = (*dynamics.inputs, *dynamics.states, *dynamics.parameters)
        carried, used = dynamics.carried(o), dynamics.used(o)
        for name, want, got in zip(names, expected, found, strict=True):
            if name in dynamics.states and name not in carried:
                continue  # it comes out as it went in, which the loop knows by itself
            if name in dynamics.parameters and name not in used:
                assert not want.any(), f"{name} under {chosen}: the loop is told not to read what matters"
                continue
            torch.testing.assert_close(torch.as_tensor(got).double().expand(UNITS), want, msg=f"{name} under {chosen}")

    for chosen in choices(dynamics):
        check(chosen)


@pytest.mark.parametrize("dynamics", MODELS, ids=lambda d: d.name)
def test_a_state_that_is_not_carried_is_not_read(dynamics):
    for chosen in choices(dynamics):
        o = options_from(dynamics, options_key(dynamics, chosen))
        carried = dynamics.carried(o)
        numbers = [torch.full((1,), 0.5, dtype=torch.float64) for _ in dynamics.columns]
        constants = [1.0 for _ in dynamics.constants]
        inputs = [torch.full((1,), 0.3, dtype=torch.float64) for _ in dynamics.inputs]
        results = []
        for other in (0.0, 7.0):
            memory = [torch.full((1,), 0.4 if name in carried else other) for name in dynamics.memory]
            out = dynamics.step(*inputs, *memory, *numbers, *constants, SURROGATE.smooth, o)
            named = dict(zip(("out", *dynamics.memory), out, strict=True))
            results.append([value for name, value in named.items() if name in ("out", *carried)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), chosen
