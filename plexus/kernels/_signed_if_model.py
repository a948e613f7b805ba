"""The equations of the integrate-and-fire neuron that can take a spike back, forwards and backwards.

    u[t] = v[t-1] + x[t]
    z[t] = port(H(u[t] - θ) - B[t]),      B[t] = 1 where u[t] <= floor and n[t-1] > 0, else 0
    v[t] = u[t] - z[t] θ
    n[t] = n[t-1] + z[t]                                   spikes emitted less those taken back

port(s) = clip(g s + b, low, high) is the unit's gain and clamp, the identity unless edited.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, where
from plexus.kernels._frame import PORT, Dynamics

__all__ = ["SIGNED_IF_DYNAMICS"]


def step(x, v, z, n, threshold, g, b, low, high, floor, spike, o):  # type: ignore[no-untyped-def]
    u = v + x
    s = spike(u - threshold)
    if o.signed:
        s = s - where((u <= floor) & (n > 0.0), 1.0, 0.0)
    if o.port:
        s = clip(g * s + b, low, high)
    return s, u - s * threshold, s, n + s


def adjoint(x, v, z, n, threshold, g, b, low, high, floor, ds, dv, dz, spike, slope, o):  # type: ignore[no-untyped-def]
    u = v + x
    s = spike(u - threshold)
    if o.signed:
        s = s - where((u <= floor) & (n > 0.0), 1.0, 0.0)
    if o.port:
        a = g * s + b
        s = clip(a, low, high)
    ds = ds + dz - dv * threshold
    if o.port:
        ds = where((a < low) | (a > high), 0.0, ds * g)
    jump = ds * slope(u - threshold)
    du = dv + jump
    return du, du, 0.0, 0.0 - dv * s - jump


SIGNED_IF_DYNAMICS = Dynamics(
    name="signed_if",
    step=step,
    adjoint=adjoint,
    states=("v", "z"),
    counters=("n",),
    echo="z",
    parameters=("threshold",),
    settings=PORT,
    constants=("floor",),
    options={"signed": True},
    carried=lambda o: ("v", "n"),
    used=lambda o: ("threshold", *(PORT if o.port else ())),
)
