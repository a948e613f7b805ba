"""The equations of the integrate-and-fire neuron with conductance-based synapses, forwards and backwards.

    g_e[t] = ρ_e g_e[t-1] + max(x_e[t], 0)                conductances, in units of the leak; never negative
    g_i[t] = ρ_i g_i[t-1] + max(x_i[t], 0)
    G[t] = 1 + g_e[t] + g_i[t]
    V[t] = (rest + g_e[t] E_e + g_i[t] E_i) / G[t]        the potential to which they pull
    m[t] = V[t] + (v[t-1] - V[t]) exp(-(dt/τ) G[t])       exact while they are constant   (refractory: m[t] = v[t-1])
    z[t] = port(H(m[t] - θ))                              spike            (refractory: port(0))
    v[t] = (1 - z[t]) m[t] + z[t] reset                   reset, or none

The conductances go on while the membrane is refractory.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, exp, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["COBA_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    xe, xi, v, ge, gi, z, r,
    rate, decay_exc, decay_inh, e_exc, e_inh, rest, threshold, reset,
    g, b, low, high, period, spike, o,
):  # fmt: skip
    ge = decay_exc * ge + where(xe > 0.0, xe, 0.0)
    gi = decay_inh * gi + where(xi > 0.0, xi, 0.0)
    total = 1.0 + ge + gi
    pull = (rest + ge * e_exc + gi * e_inh) / total
    m = pull + (v - pull) * exp(0.0 - rate * total)
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - threshold)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        s = clip(g * s + b, low, high)
    if o.detach:
        y = stop(s)
    else:
        y = s
    v = m
    if o.reset == "hard":
        v = (1.0 - y) * m + y * reset
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, v, ge, gi, s, r


def adjoint(  # type: ignore[no-untyped-def]
    xe, xi, v, ge, gi, z, r,
    rate, decay_exc, decay_inh, e_exc, e_inh, rest, threshold, reset,
    g, b, low, high, period,
    ds, dv, dge, dgi, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    ce = decay_exc * ge + where(xe > 0.0, xe, 0.0)
    ci = decay_inh * gi + where(xi > 0.0, xi, 0.0)
    total = 1.0 + ce + ci
    pull = (rest + ce * e_exc + ci * e_inh) / total
    keep = exp(0.0 - rate * total)
    m = pull + (v - pull) * keep
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - threshold)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        a = g * s + b
        s = clip(a, low, high)
    # and back
    ds = ds + dz
    dm = dv
    d_reset = 0.0
    if o.reset == "hard":
        dm = dv * (1.0 - s)
        d_reset = dv * s
        if not o.detach:
            ds = ds + dv * (reset - m)
    if o.port:
        ds = where((a < low) | (a > high), 0.0, ds * g)
    if o.refractory:
        ds = where(r > 0.0, 0.0, ds)
    du = ds * slope(m - threshold)
    dm = dm + du
    if o.refractory:
        dn = where(r > 0.0, 0.0, dm)
        d_v = where(r > 0.0, dm, dm * keep)
    else:
        dn = dm
        d_v = dm * keep
    d_exponent = dn * (v - pull) * keep
    d_sum = dn * (1.0 - keep) / total
    d_total = 0.0 - d_exponent * rate - d_sum * pull
    dce = dge + d_sum * e_exc + d_total
    dci = dgi + d_sum * e_inh + d_total
    return (
        where(xe > 0.0, dce, 0.0),
        where(xi > 0.0, dci, 0.0),
        d_v,
        dce * decay_exc,
        dci * decay_inh,
        0.0,
        0.0 - d_exponent * total,
        dce * ge,
        dci * gi,
        d_sum * ce,
        d_sum * ci,
        d_sum,
        0.0 - du,
        d_reset,
    )


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", "ge", "gi", *(("r",) if o.refractory else ()))


def _used(o: Options) -> tuple[str, ...]:
    names = ["rate", "decay_exc", "decay_inh", "e_exc", "e_inh", "rest", "threshold"]
    names += ["reset"] if o.reset == "hard" else []
    return (*names, *(PORT if o.port else ()))


COBA_DYNAMICS = Dynamics(
    name="coba",
    step=step,
    adjoint=adjoint,
    inputs=("xe", "xi"),
    states=("v", "ge", "gi", "z"),
    counters=("r",),
    echo="z",
    parameters=("rate", "decay_exc", "decay_inh", "e_exc", "e_inh", "rest", "threshold", "reset"),
    settings=PORT,
    constants=("period",),
    options={"reset": "hard", "detach": False, "refractory": False},
    carried=_carried,
    used=_used,
)
