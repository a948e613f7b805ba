"""The equations of the leaky integrate-and-fire neuron, forwards and backwards, for tensors and for scalars.

    m[t] = rest + α (v[t-1] - rest) + κ x[t]              integrate        (refractory: m[t] = v[t-1])
    z[t] = port(H(m[t] - θ))                              spike            (refractory: port(0))
    v[t] = (1 - z[t]) m[t] + z[t] reset                   hard reset
    v[t] = m[t] - z[t] θ                                  soft reset
    v[t] = m[t]                                           no reset

With the delayed reset the spike of step t-1 resets what step t has integrated, before the threshold is asked:

    m[t] ← (1 - z[t-1]) m[t] + z[t-1] reset   or   m[t] ← m[t] - z[t-1] θ,        v[t] = m[t]

port(s) = clip(g s + b, low, high) is the unit's gain and clamp, the identity unless edited; reset, refractory time and
output all see what it lets through. A unit that emits at least 1/2 is then refractory for the given number of steps.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["LIF_DYNAMICS"]


def step(x, v, z, r, decay, gain, threshold, rest, reset, g, b, low, high, period, spike, o):  # type: ignore[no-untyped-def]
    if o.rest:
        m = rest + decay * (v - rest) + gain * x
    else:
        m = decay * v + gain * x
    if o.refractory:
        m = where(r > 0.0, v, m)
    if o.delayed:
        if o.detach:
            y = stop(z)
        else:
            y = z
        if o.reset == "hard":
            m = (1.0 - y) * m + y * reset
        if o.reset == "soft":
            m = m - y * threshold
    s = spike(m - threshold)
    if o.refractory:
        s = where(r > 0.0, 0.0, s)
    if o.port:
        s = clip(g * s + b, low, high)
    v = m
    if not o.delayed:
        if o.detach:
            y = stop(s)
        else:
            y = s
        if o.reset == "hard":
            v = (1.0 - y) * m + y * reset
        if o.reset == "soft":
            v = m - y * threshold
    if o.refractory:
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r))
    return s, v, s, r


def adjoint(x, v, z, r, decay, gain, threshold, rest, reset, g, b, low, high, period, ds, dv, dz, spike, slope, o):  # type: ignore[no-untyped-def]
    # the step again, as far as its derivatives need it
    if o.rest:
        i = rest + decay * (v - rest) + gain * x
    else:
        i = decay * v + gain * x
    if o.refractory:
        i = where(r > 0.0, v, i)
    m = i
    if o.delayed:
        if o.reset == "hard":
            m = (1.0 - z) * i + z * reset
        if o.reset == "soft":
            m = i - z * threshold
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
    if not o.delayed:
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
    dz = 0.0
    if o.delayed:
        if o.reset == "hard":
            d_reset = dm * z
            if not o.detach:
                dz = dm * (reset - i)
            dm = dm * (1.0 - z)
        if o.reset == "soft":
            d_threshold = d_threshold - dm * z
            if not o.detach:
                dz = 0.0 - dm * threshold
    if o.refractory:
        di = where(r > 0.0, 0.0, dm)
        dv = where(r > 0.0, dm, dm * decay)
    else:
        di = dm
        dv = dm * decay
    if o.rest:
        d_decay = di * (v - rest)
    else:
        d_decay = di * v
    return di * gain, dv, dz, d_decay, di * x, d_threshold, di * (1.0 - decay), d_reset


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", *(("z",) if o.delayed and o.reset != "none" else ()), *(("r",) if o.refractory else ()))


def _used(o: Options) -> tuple[str, ...]:
    names = ["decay", "gain", "threshold"]
    names += ["rest"] if o.rest else []
    names += ["reset"] if o.reset == "hard" else []
    return (*names, *(PORT if o.port else ()))


LIF_DYNAMICS = Dynamics(
    name="lif",
    step=step,
    adjoint=adjoint,
    states=("v", "z"),
    counters=("r",),
    echo="z",
    parameters=("decay", "gain", "threshold", "rest", "reset"),
    settings=PORT,
    constants=("period",),
    options={"reset": "soft", "delayed": False, "detach": False, "refractory": False, "rest": False},
    carried=_carried,
    used=_used,
)
