"""The equations of the leaky integrator: a unit whose output is its potential.

v[t] = rest + α (v[t-1] - rest) + κ x[t]
out[t] = v[t]
"""

from __future__ import annotations

from plexus.kernels._frame import Dynamics

__all__ = ["LEAKY_DYNAMICS"]


def step(x, v, decay, gain, rest, spike, o):  # type: ignore[no-untyped-def]
    v = rest + decay * (v - rest) + gain * x
    return v, v


def adjoint(x, v, decay, gain, rest, dy, dv, spike, slope, o):  # type: ignore[no-untyped-def]
    dm = dy + dv
    return dm * gain, dm * decay, dm * (v - rest), dm * x, dm * (1.0 - decay)


LEAKY_DYNAMICS = Dynamics(
    name="leaky_integrator",
    step=step,
    adjoint=adjoint,
    states=("v",),
    parameters=("decay", "gain", "rest"),
)
