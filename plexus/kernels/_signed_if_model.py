"""The equations of the integrate-and-fire neuron that can take a spike back, forwards and backwards.

    u[t] = v[t-1] + x[t]
    z[t] = port(H(u[t] - θ) - B[t]),      B[t] = 1 where u[t] <= low and n[t-1] > 0, else 0
    v[t] = u[t] - z[t] θ
    n[t] = n[t-1] + z[t]                                   spikes emitted less those taken back

port(s) = clip(g s + b, lowest, highest) is the unit's gain and clamp, the identity unless edited.
"""

from __future__ import annotations

from typing import Any

from plexus.kernels._dialect import clip, where
from plexus.kernels._frame import Dynamics, Options

__all__ = ["SIGNED_IF_DYNAMICS"]


def step(x, v, n, threshold, g, b, lowest, highest, low, spike, o):  # type: ignore[no-untyped-def]
    u = v + x
    s = spike(u - threshold)
    if o.signed:
        s = s - where((u <= low) & (n > 0.0), 1.0, 0.0)
    if o.port:
        s = clip(g * s + b, lowest, highest)
    return s, u - s * threshold, n + s


def adjoint(x, v, n, threshold, g, b, lowest, highest, low, ds, dv, spike, slope, o):  # type: ignore[no-untyped-def]
    u = v + x
    s = spike(u - threshold)
    if o.signed:
        s = s - where((u <= low) & (n > 0.0), 1.0, 0.0)
    if o.port:
        a = g * s + b
        s = clip(a, lowest, highest)
    ds = ds - dv * threshold
    if o.port:
        ds = where((a < lowest) | (a > highest), 0.0, ds * g)
    jump = ds * slope(u - threshold)
    du = dv + jump
    return du, du, 0.0 - dv * s - jump


def _used(o: Options) -> tuple[str, ...]:
    return ("threshold", *(("g", "b", "lowest", "highest") if o.port else ()))


_DEFAULTS: dict[str, Any] = {
    "signed": True,
    "port": False,
    "smooth": False,
    "inclusive": True,
    "surrogate": "arctan",
}

SIGNED_IF_DYNAMICS = Dynamics(
    name="signed_if",
    step=step,
    adjoint=adjoint,
    states=("v",),
    counters=("n",),
    echo=None,
    parameters=("threshold",),
    settings=("g", "b", "lowest", "highest"),
    constants=("low",),
    options=_DEFAULTS,
    carried=lambda o: ("v", "n"),
    used=_used,
)
