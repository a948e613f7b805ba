"""The equations of the adaptive leaky integrate-and-fire neuron, forwards and backwards.

    a[t] = ρ_a a[t-1] + z[t-1],    θ[t] = θ0 + β a[t]                          threshold adaptation
    w[t] = ρ_w w[t-1] + (1 - ρ_w) c (v[t-1] - rest) + k z[t-1]                 adaptation current
    m[t] = rest + α (v[t-1] - rest) + κ (x[t] - w[t])     integrate            (refractory: m[t] = v[t-1])
    z[t] = port(H(m[t] - θ[t]))                           spike                (refractory: port(0))
    v[t] = m[t] - z[t] θ[t],   (1 - z[t]) m[t] + z[t] reset   or   m[t]        soft, hard, no reset

Either adaptation may be left out. Both follow what the port lets through, and go on while the membrane is refractory.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["ALIF_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    x, v, a, w, z, r,
    decay, gain, threshold, rest, reset, decay_a, beta, decay_w, coupling, kick,
    g, b, low, high, period, spike, o,
):  # fmt: skip
    limit = threshold
    if o.threshold_adapts:
        a = decay_a * a + z
        limit = threshold + beta * a
    current = x
    if o.current_adapts:
        w = decay_w * w + (1.0 - decay_w) * coupling * (v - rest) + kick * z
        current = x - w
    m = rest + decay * (v - rest) + gain * current
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - limit)
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
    if o.reset == "soft":
        v = m - y * limit
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, v, a, w, s, r


def adjoint(  # type: ignore[no-untyped-def]
    x, v, a, w, z, r,
    decay, gain, threshold, rest, reset, decay_a, beta, decay_w, coupling, kick,
    g, b, low, high, period,
    ds, dv, da, dw, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    limit = threshold
    if o.threshold_adapts:
        raised = decay_a * a + z
        limit = threshold + beta * raised
    above = v - rest
    current = x
    if o.current_adapts:
        current = x - (decay_w * w + (1.0 - decay_w) * coupling * above + kick * z)
    m = rest + decay * above + gain * current
    if o.refractory:
        m = where(r > 0.0, v, m)
    s = spike(m - limit)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        e = g * s + b
        s = clip(e, low, high)
    # and back
    ds = ds + dz
    dm = dv
    d_limit = 0.0
    d_reset = 0.0
    if o.reset == "hard":
        dm = dv * (1.0 - s)
        d_reset = dv * s
        if not o.detach:
            ds = ds + dv * (reset - m)
    if o.reset == "soft":
        d_limit = 0.0 - dv * s
        if not o.detach:
            ds = ds - dv * limit
    if o.port:
        ds = where((e < low) | (e > high), 0.0, ds * g)
    if o.refractory:
        ds = where(r > 0.0, 0.0, ds)
    du = ds * slope(m - limit)
    dm = dm + du
    d_limit = d_limit - du
    if o.refractory:
        dn = where(r > 0.0, 0.0, dm)
    else:
        dn = dm
    d_x = dn * gain
    d_above = dn * decay
    d_z = 0.0
    d_a = 0.0
    d_decay_a = 0.0
    d_beta = 0.0
    if o.threshold_adapts:
        d_beta = d_limit * raised
        d_raised = da + d_limit * beta
        d_a = d_raised * decay_a
        d_decay_a = d_raised * a
        d_z = d_raised
    d_w = 0.0
    d_decay_w = 0.0
    d_coupling = 0.0
    d_kick = 0.0
    if o.current_adapts:
        d_current = dw - d_x
        d_w = d_current * decay_w
        d_decay_w = d_current * (w - coupling * above)
        d_coupling = d_current * (1.0 - decay_w) * above
        d_kick = d_current * z
        d_above = d_above + d_current * (1.0 - decay_w) * coupling
        d_z = d_z + d_current * kick
    if o.refractory:
        d_v = d_above + where(r > 0.0, dm, 0.0)
    else:
        d_v = d_above
    return (
        d_x,
        d_v,
        d_a,
        d_w,
        d_z,
        dn * above,
        dn * current,
        d_limit,
        dn - d_above,
        d_reset,
        d_decay_a,
        d_beta,
        d_decay_w,
        d_coupling,
        d_kick,
    )


def _carried(o: Options) -> tuple[str, ...]:
    adapts = o.threshold_adapts or o.current_adapts
    names = ["v", *(["a"] if o.threshold_adapts else []), *(["w"] if o.current_adapts else [])]
    return (*names, *(["z"] if adapts else []), *(["r"] if o.refractory else []))


def _used(o: Options) -> tuple[str, ...]:
    names = ["decay", "gain", "threshold", "rest"]
    names += ["reset"] if o.reset == "hard" else []
    names += ["decay_a", "beta"] if o.threshold_adapts else []
    names += ["decay_w", "coupling", "kick"] if o.current_adapts else []
    return (*names, *(PORT if o.port else ()))


ALIF_DYNAMICS = Dynamics(
    name="alif",
    step=step,
    adjoint=adjoint,
    states=("v", "a", "w", "z"),
    counters=("r",),
    echo="z",
    parameters=(
        "decay",
        "gain",
        "threshold",
        "rest",
        "reset",
        "decay_a",
        "beta",
        "decay_w",
        "coupling",
        "kick",
    ),
    settings=PORT,
    constants=("period",),
    options={
        "threshold_adapts": True,
        "current_adapts": False,
        "reset": "soft",
        "detach": False,
        "refractory": False,
    },
    carried=_carried,
    used=_used,
)
