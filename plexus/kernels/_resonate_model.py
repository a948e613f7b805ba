"""The equations of two resonate-and-fire neurons, forwards and backwards. The state p + iq turns in the complex plane.

Resonate and fire; A + iB = exp((-1/τ + iω) dt) turns and damps the state exactly:

    n[t] = A p[t-1] - B q[t-1] + x[t]
    m[t] = B p[t-1] + A q[t-1]
    z[t] = port(H(m[t] - θ))                              spike            (refractory: port(0))
    p[t] = (1 - z[t]) n[t]                                hard reset, or none
    q[t] = (1 - z[t]) m[t] + z[t] reset

Balanced; spikes damp the oscillation and raise the threshold for a while, instead of resetting it:

    k[t] = 1 + damping - brake h[t-1]                     damping: (-1 + √(1 - (ω dt)²)) - b dt, at most balanced
    n[t] = k[t] p[t-1] - ω dt q[t-1] + x[t]
    m[t] = ω dt p[t-1] + k[t] q[t-1]
    z[t] = port(H(n[t] - θ - h[t-1]))
    h[t] = γ h[t-1] + z[t]
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["BALANCED_DYNAMICS", "RESONATE_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    x, p, q, z, r,
    along, across, threshold, reset,
    g, b, low, high, period, spike, o,
):  # fmt: skip
    n = along * p - across * q + x
    m = across * p + along * q
    s = spike(m - threshold)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        s = clip(g * s + b, low, high)
    if o.detach:
        y = stop(s)
    else:
        y = s
    p = n
    q = m
    if o.reset == "hard":
        p = (1.0 - y) * n
        q = (1.0 - y) * m + y * reset
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, p, q, s, r


def adjoint(  # type: ignore[no-untyped-def]
    x, p, q, z, r,
    along, across, threshold, reset,
    g, b, low, high, period,
    ds, dp, dq, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    n = along * p - across * q + x
    m = across * p + along * q
    s = spike(m - threshold)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        a = g * s + b
        s = clip(a, low, high)
    # and back
    ds = ds + dz
    dn = dp
    dm = dq
    d_reset = 0.0
    if o.reset == "hard":
        dn = dp * (1.0 - s)
        dm = dq * (1.0 - s)
        d_reset = dq * s
        if not o.detach:
            ds = ds + dq * (reset - m) - dp * n
    if o.port:
        ds = where((a < low) | (a > high), 0.0, ds * g)
    if o.refractory:
        ds = where(r > 0.0, 0.0, ds)
    du = ds * slope(m - threshold)
    dm = dm + du
    return (
        dn,
        dn * along + dm * across,
        dm * along - dn * across,
        0.0,
        dn * p + dm * q,
        dm * p - dn * q,
        0.0 - du,
        d_reset,
    )


def balanced_step(  # type: ignore[no-untyped-def]
    x, p, q, h, z,
    turn, damping, brake, decay, threshold,
    g, b, low, high, spike, o,
):  # fmt: skip
    k = 1.0 + damping - brake * h
    n = k * p - turn * q + x
    m = turn * p + k * q
    s = spike(n - threshold - h)
    if o.port:
        s = clip(g * s + b, low, high)
    h = decay * h + s
    return s, n, m, h, s


def balanced_adjoint(  # type: ignore[no-untyped-def]
    x, p, q, h, z,
    turn, damping, brake, decay, threshold,
    g, b, low, high,
    ds, dp, dq, dh, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    k = 1.0 + damping - brake * h
    n = k * p - turn * q + x
    u = n - threshold - h
    # and back
    ds = ds + dz + dh
    if o.port:
        a = g * spike(u) + b
        ds = where((a < low) | (a > high), 0.0, ds * g)
    du = ds * slope(u)
    dn = dp + du
    dk = dn * p + dq * q
    return (
        dn,
        dn * k + dq * turn,
        dq * k - dn * turn,
        dh * decay - du - dk * brake,
        0.0,
        dq * p - dn * q,
        dk,
        0.0 - dk * h,
        dh * h,
        0.0 - du,
    )


def _carried(o: Options) -> tuple[str, ...]:
    return ("p", "q", *(("r",) if o.refractory else ()))


def _used(o: Options) -> tuple[str, ...]:
    names = ("along", "across", "threshold", *(("reset",) if o.reset == "hard" else ()))
    return (*names, *(PORT if o.port else ()))


RESONATE_DYNAMICS = Dynamics(
    name="resonate",
    step=step,
    adjoint=adjoint,
    states=("p", "q", "z"),
    counters=("r",),
    echo="z",
    parameters=("along", "across", "threshold", "reset"),
    settings=PORT,
    constants=("period",),
    options={"reset": "hard", "detach": False, "refractory": False},
    carried=_carried,
    used=_used,
)

BALANCED_DYNAMICS = Dynamics(
    name="balanced_resonate",
    step=balanced_step,
    adjoint=balanced_adjoint,
    states=("p", "q", "h", "z"),
    echo="z",
    parameters=("turn", "damping", "brake", "decay", "threshold"),
    settings=PORT,
)
