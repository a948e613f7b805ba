"""The equations of a neuron with a dendrite and a soma that drive each other, forwards and backwards.

    f = σ((d[t-1] - θ_d) / s)                                                 regenerative current of the dendrite
    d[t] = λ d[t-1] + κ_d (x_d[t] + P f + c_d v[t-1]) + B z[t-1]              dendrite
    m[t] = α v[t-1] + κ (x_s[t] + c_s d[t])                                   soma  (refractory: m[t] = v[t-1])
    z[t] = port(H(m[t] - θ))                              spike               (refractory: port(0))
    v[t] = m[t] - z[t] θ,   (1 - z[t]) m[t] + z[t] reset   or   m[t]          soft, hard, no reset

λ and α include the load that the coupling c is on each compartment. The dendrite goes on while the soma is refractory.
"""

from __future__ import annotations

from plexus.kernels._dialect import clip, exp, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["TWO_COMPARTMENT_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    xs, xd, v, d, z, r,
    decay, gain, decay_dend, gain_dend, to_soma, to_dend,
    plateau, threshold_dend, width_dend, backprop, threshold, reset,
    g, b, low, high, period, spike, o,
):  # fmt: skip
    into = xd + to_dend * v
    if o.plateau:
        # beyond 30 the sigmoid is flat to rounding; within, neither it nor its derivative overflows
        f = 1.0 / (1.0 + exp(0.0 - clip((d - threshold_dend) / width_dend, -30.0, 30.0)))
        into = into + plateau * f
    d = decay_dend * d + gain_dend * into + backprop * z
    m = decay * v + gain * (xs + to_soma * d)
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
    return s, v, d, s, r


def adjoint(  # type: ignore[no-untyped-def]
    xs, xd, v, d, z, r,
    decay, gain, decay_dend, gain_dend, to_soma, to_dend,
    plateau, threshold_dend, width_dend, backprop, threshold, reset,
    g, b, low, high, period,
    ds, dv, dd, dz, spike, slope, o,
):  # fmt: skip
    # the step again, as far as its derivatives need it
    into = xd + to_dend * v
    if o.plateau:
        u = (d - threshold_dend) / width_dend
        f = 1.0 / (1.0 + exp(0.0 - clip(u, -30.0, 30.0)))
        into = into + plateau * f
    n = decay_dend * d + gain_dend * into + backprop * z
    drive = xs + to_soma * n
    m = decay * v + gain * drive
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
        dk = where(r > 0.0, 0.0, dm)
        d_v = where(r > 0.0, dm, dm * decay)
    else:
        dk = dm
        d_v = dm * decay
    d_drive = dk * gain
    dn = dd + d_drive * to_soma
    d_into = dn * gain_dend
    d_d = dn * decay_dend
    d_plateau = 0.0
    d_threshold_dend = 0.0
    d_width = 0.0
    if o.plateau:
        d_plateau = d_into * f
        d_u = where((u < -30.0) | (u > 30.0), 0.0, d_into * plateau * f * (1.0 - f)) / width_dend
        d_d = d_d + d_u
        d_threshold_dend = 0.0 - d_u
        d_width = 0.0 - d_u * u
    return (
        d_drive,
        d_into,
        d_v + d_into * to_dend,
        d_d,
        dn * backprop,
        dk * v,
        dk * drive,
        dn * d,
        dn * into,
        d_drive * n,
        d_into * v,
        d_plateau,
        d_threshold_dend,
        d_width,
        dn * z,
        d_threshold,
        d_reset,
    )


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", "d", "z", *(("r",) if o.refractory else ()))


def _used(o: Options) -> tuple[str, ...]:
    names = ["decay", "gain", "decay_dend", "gain_dend", "to_soma", "to_dend"]
    names += ["plateau", "threshold_dend", "width_dend"] if o.plateau else []
    names += ["backprop", "threshold"]
    names += ["reset"] if o.reset == "hard" else []
    return (*names, *(PORT if o.port else ()))


TWO_COMPARTMENT_DYNAMICS = Dynamics(
    name="two_compartment",
    step=step,
    adjoint=adjoint,
    inputs=("xs", "xd"),
    states=("v", "d", "z"),
    counters=("r",),
    echo="z",
    parameters=(
        "decay",
        "gain",
        "decay_dend",
        "gain_dend",
        "to_soma",
        "to_dend",
        "plateau",
        "threshold_dend",
        "width_dend",
        "backprop",
        "threshold",
        "reset",
    ),
    settings=PORT,
    constants=("period",),
    options={"plateau": True, "reset": "soft", "detach": False, "refractory": False},
    carried=_carried,
    used=_used,
)
