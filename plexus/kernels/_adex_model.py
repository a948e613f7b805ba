"""The equations of the adaptive exponential integrate-and-fire neuron, forwards and backwards; one Euler step.

    F[t] = -g_L (v[t-1] - E_L) + g_L Δ exp((min(v[t-1], V_peak) - V_T) / Δ) - w[t-1] + x[t]
    m[t] = v[t-1] + (dt/C) F[t]                                               (refractory: m[t] = v[t-1])
    q[t] = w[t-1] + (dt/τ_w) (a (v[t-1] - E_L) - w[t-1])
    z[t] = port(H(m[t] - V_peak))                                             (refractory: port(0))
    v[t] = (1 - z[t]) m[t] + z[t] V_r,      w[t] = q[t] + z[t] b

The exponential ends at V_peak, so that a unit whose spikes an edit takes away stays finite.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, exp, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["ADEX_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    x, v, w, z, r,
    per_c, leak, e_leak, v_threshold, delta, a, per_w, jump, reset, peak,
    g, b, low, high, period, spike, o,
):  # fmt: skip
    n = where(v < peak, v, peak)
    above = v - e_leak
    m = v + per_c * (leak * (delta * exp((n - v_threshold) / delta) - above) - w + x)
    q = w + per_w * (a * above - w)
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - peak)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        s = clip(g * s + b, low, high)
    if o.detach:
        y = stop(s)
    else:
        y = s
    v = (1.0 - y) * m + y * reset
    w = q + s * jump
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, v, w, s, r


def adjoint(  # type: ignore[no-untyped-def]
    x, v, w, z, r,
    per_c, leak, e_leak, v_threshold, delta, a, per_w, jump, reset, peak,
    g, b, low, high, period,
    ds, dv, dw, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    n = where(v < peak, v, peak)
    above = v - e_leak
    y = (n - v_threshold) / delta
    e = exp(y)
    force = leak * (delta * e - above) - w + x
    m = v + per_c * force
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - peak)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        c = g * s + b
        s = clip(c, low, high)
    # and back
    ds = ds + dz + dw * jump
    dm = dv * (1.0 - s)
    if not o.detach:
        ds = ds + dv * (reset - m)
    if o.port:
        ds = where((c < low) | (c > high), 0.0, ds * g)
    if o.refractory:
        ds = where(r > 0.0, 0.0, ds)
    du = ds * slope(m - peak)
    dm = dm + du
    if o.refractory:
        dn = where(r > 0.0, 0.0, dm)
    else:
        dn = dm
    d_force = dn * per_c
    steep = d_force * leak * e
    d_above = dw * per_w * a - d_force * leak
    return (
        d_force,
        dm + d_above + where(v < peak, steep, 0.0),
        dw * (1.0 - per_w) - d_force,
        0.0,
        dn * force,
        d_force * (delta * e - above),
        0.0 - d_above,
        0.0 - steep,
        steep * (1.0 - y),
        dw * per_w * above,
        dw * (a * above - w),
        dw * s,
        dv * s,
        where(v < peak, 0.0, steep) - du,
    )


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", "w", *(("r",) if o.refractory else ()))


ADEX_DYNAMICS = Dynamics(
    name="adex",
    step=step,
    adjoint=adjoint,
    states=("v", "w", "z"),
    counters=("r",),
    echo="z",
    parameters=(
        "per_c",
        "leak",
        "e_leak",
        "v_threshold",
        "delta",
        "a",
        "per_w",
        "jump",
        "reset",
        "peak",
    ),
    settings=PORT,
    constants=("period",),
    options={"detach": False, "refractory": False},
    carried=_carried,
)
