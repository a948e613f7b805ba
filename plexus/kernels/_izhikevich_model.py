"""The equations of the Izhikevich neuron, forwards and backwards; Euler steps as in the paper of 2003.

f(v) = 0.04 v² + 5 v + 140 - u[t-1] + x[t]
h[t] = v[t-1] + (dt/2) f(v[t-1]),   m[t] = h[t] + (dt/2) f(h[t])          halved: two steps of dt/2
m[t] = v[t-1] + dt f(v[t-1])                                              one step; (refractory: m[t] = v[t-1])
q[t] = u[t-1] + dt a (b m[t] - u[t-1])
z[t] = port(H(m[t] - V_peak))                                             (refractory: port(0))
v[t] = (1 - z[t]) m[t] + z[t] c,        u[t] = q[t] + z[t] d
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["IZHIKEVICH_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    x, v, u, z, r,
    rate, coupling, reset, jump, peak,
    g, b, low, high, period, dt, spike, o,
):  # fmt: skip
    if o.halved:
        h = v + 0.5 * dt * ((0.04 * v + 5.0) * v + 140.0 - u + x)
        m = h + 0.5 * dt * ((0.04 * h + 5.0) * h + 140.0 - u + x)
    else:
        m = v + dt * ((0.04 * v + 5.0) * v + 140.0 - u + x)
    if o.refractory:
        m = where(r > 0.0, v, m)
    q = u + dt * rate * (coupling * m - u)
    s = spike(m - peak)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        s = clip(g * s + b, low, high)
    if o.detach:
        y = stop(s)
    else:
        y = s
    v = (1.0 - y) * where(m < peak, m, peak) + y * reset
    u = q + s * jump
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, v, u, s, r


def adjoint(  # type: ignore[no-untyped-def]
    x, v, u, z, r,
    rate, coupling, reset, jump, peak,
    g, b, low, high, period, dt,
    ds, dv, du, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    if o.halved:
        h = v + 0.5 * dt * ((0.04 * v + 5.0) * v + 140.0 - u + x)
        m = h + 0.5 * dt * ((0.04 * h + 5.0) * h + 140.0 - u + x)
    else:
        m = v + dt * ((0.04 * v + 5.0) * v + 140.0 - u + x)
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - peak)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        a = g * s + b
        s = clip(a, low, high)
    # and back
    ds = ds + dz + du * jump
    d_top = dv * (1.0 - s)
    dm = where(m < peak, d_top, 0.0) + du * dt * rate * coupling
    if not o.detach:
        ds = ds + dv * (reset - where(m < peak, m, peak))
    if o.port:
        ds = where((a < low) | (a > high), 0.0, ds * g)
    if o.refractory:
        ds = where(r > 0.0, 0.0, ds)
    d_spike = ds * slope(m - peak)
    dm = dm + d_spike
    if o.refractory:
        dn = where(r > 0.0, 0.0, dm)
    else:
        dn = dm
    if o.halved:
        dh = dn * (1.0 + 0.5 * dt * (0.08 * h + 5.0))
        d_x = 0.5 * dt * (dn + dh)
        d_v = dh * (1.0 + 0.5 * dt * (0.08 * v + 5.0))
    else:
        d_x = dn * dt
        d_v = dn * (1.0 + dt * (0.08 * v + 5.0))
    if o.refractory:
        d_v = d_v + where(r > 0.0, dm, 0.0)
    return (
        d_x,
        d_v,
        du * (1.0 - dt * rate) - d_x,
        0.0,
        du * dt * (coupling * m - u),
        du * dt * rate * m,
        dv * s,
        du * s,
        where(m < peak, 0.0, d_top) - d_spike,
    )


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", "u", *(("r",) if o.refractory else ()))


IZHIKEVICH_DYNAMICS = Dynamics(
    name="izhikevich",
    step=step,
    adjoint=adjoint,
    states=("v", "u", "z"),
    counters=("r",),
    echo="z",
    parameters=("rate", "coupling", "reset", "jump", "peak"),
    settings=PORT,
    constants=("period", "dt"),
    options={"halved": True, "detach": False, "refractory": False},
    carried=_carried,
)
