"""The equations of the integrate-and-fire neuron with current-based synapses, forwards and backwards.

    i[t] = ρ i[t-1] + k x[t]                              exponential synapse
    h[t] = ρ_r h[t-1] + k x[t],   i[t] = ρ i[t-1] + h[t]  double exponential; ρ_r = ρ is the alpha function
    m[t] = rest + α (v[t-1] - rest) + κ i[t]              integrate        (refractory: m[t] = v[t-1])
    z[t] = port(H(m[t] - θ))                              spike            (refractory: port(0))
    v[t] = m[t] - z[t] θ,   (1 - z[t]) m[t] + z[t] reset   or   m[t]        soft, hard, no reset

The synaptic current goes on while the membrane is refractory.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["CUBA_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    x, v, i, h, z, r,
    decay, gain, decay_syn, decay_rise, gain_syn, threshold, rest, reset,
    g, b, low, high, period, spike, o,
):  # fmt: skip
    if o.double:
        h = decay_rise * h + gain_syn * x
        i = decay_syn * i + h
    else:
        i = decay_syn * i + gain_syn * x
    m = rest + decay * (v - rest) + gain * i
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
    if o.reset == "soft":
        v = m - y * threshold
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, v, i, h, s, r


def adjoint(  # type: ignore[no-untyped-def]
    x, v, i, h, z, r,
    decay, gain, decay_syn, decay_rise, gain_syn, threshold, rest, reset,
    g, b, low, high, period,
    ds, dv, di, dh, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    if o.double:
        k = decay_rise * h + gain_syn * x
        j = decay_syn * i + k
    else:
        j = decay_syn * i + gain_syn * x
    m = rest + decay * (v - rest) + gain * j
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
    d_threshold = 0.0
    d_reset = 0.0
    if o.reset == "hard":
        dm = dv * (1.0 - s)
        d_reset = dv * s
        if not o.detach:
            ds = ds + dv * (reset - m)
    if o.reset == "soft":
        d_threshold = 0.0 - dv * s
        if not o.detach:
            ds = ds - dv * threshold
    if o.port:
        ds = where((a < low) | (a > high), 0.0, ds * g)
    if o.refractory:
        ds = where(r > 0.0, 0.0, ds)
    du = ds * slope(m - threshold)
    dm = dm + du
    d_threshold = d_threshold - du
    if o.refractory:
        dn = where(r > 0.0, 0.0, dm)
        d_v = where(r > 0.0, dm, dm * decay)
    else:
        dn = dm
        d_v = dm * decay
    dj = di + dn * gain
    if o.double:
        dk = dh + dj
        d_h = dk * decay_rise
        d_decay_rise = dk * h
    else:
        dk = dj
        d_h = 0.0
        d_decay_rise = 0.0
    return (
        dk * gain_syn,
        d_v,
        dj * decay_syn,
        d_h,
        0.0,
        dn * (v - rest),
        dn * j,
        dj * i,
        d_decay_rise,
        dk * x,
        d_threshold,
        dn * (1.0 - decay),
        d_reset,
    )


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", "i", *(("h",) if o.double else ()), *(("r",) if o.refractory else ()))


def _used(o: Options) -> tuple[str, ...]:
    names = ["decay", "gain", "decay_syn", *(["decay_rise"] if o.double else []), "gain_syn", "threshold", "rest"]
    names += ["reset"] if o.reset == "hard" else []
    return (*names, *(PORT if o.port else ()))


CUBA_DYNAMICS = Dynamics(
    name="cuba",
    step=step,
    adjoint=adjoint,
    states=("v", "i", "h", "z"),
    counters=("r",),
    echo="z",
    parameters=("decay", "gain", "decay_syn", "decay_rise", "gain_syn", "threshold", "rest", "reset"),
    settings=PORT,
    constants=("period",),
    options={"double": False, "reset": "soft", "detach": False, "refractory": False},
    carried=_carried,
    used=_used,
)
