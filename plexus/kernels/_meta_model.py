"""The equations of the meta neuron, forwards and backwards, for tensors and for scalars.

    m[t] = λ v[t-1] + R x[t] - u[t-1]                                    membrane, linear form
    m[t] = clip(v + (1 - λ)(v² - v + R x[t] - u), ±limit), v = v[t-1], u = u[t-1]   quadratic form, λ = 1 - dt/τ
    w[t] = u[t-1] + a (b m[t] - u[t-1])                                  recovery (second order only, else u = 0)
    z[t] = port(H(m[t] - θ))                                             spike
    v[t] = (1 - z[t]) m[t] + z[t] v_r,   u[t] = w[t] + d z[t]            reset

A stochastic spike is the same step with logistic noise ξ on its threshold, z = H(m - θ - Δ ξ): a Bernoulli draw with
P(z = 1) = σ((m - θ)/Δ). Its derivative is that of the probability. A smooth stochastic spike is the probability.
"""

from __future__ import annotations

from plexus.kernels._dialect import absolute, clip, exp, stop, where
from plexus.kernels._frame import PORT, Dynamics, Options

__all__ = ["META_DYNAMICS"]


def step(  # type: ignore[no-untyped-def]
    x, noise, v, u, z, decay, gain, threshold, reset, temperature, recovery, coupling, jump, g, b, low, high, limit,
    spike, o
):  # fmt: skip
    drive = gain * x
    if o.second:
        drive = drive - u
    if o.quadratic:
        m = clip(v + (1.0 - decay) * (v * v - v + drive), 0.0 - limit, limit)
    else:
        m = decay * v + drive
    if o.second:
        u = u + recovery * (coupling * m - u)
    h = m - threshold
    if o.stochastic:
        e = exp(0.0 - absolute(h) / temperature)
        p = where(h < 0.0, e, 1.0 + 0.0 * e) / (1.0 + e)
        if o.smooth:
            s = p
        else:
            s = stop(spike(h - temperature * noise)) + (p - stop(p))  # the draw, with the slope of its probability
    else:
        s = spike(h)
    if o.port:
        s = clip(g * s + b, low, high)
    if o.detach:
        y = stop(s)
    else:
        y = s
    v = (1.0 - y) * m + y * reset
    if o.second:
        u = u + jump * y
    return s, v, u, s


def adjoint(  # type: ignore[no-untyped-def]
    x, noise, v, u, z, decay, gain, threshold, reset, temperature, recovery, coupling, jump, g, b, low, high, limit,
    ds, dv, du, dz, spike, slope, o
):  # fmt: skip
    # the step again, as far as its derivatives need it
    drive = gain * x
    if o.second:
        drive = drive - u
    if o.quadratic:
        i = v + (1.0 - decay) * (v * v - v + drive)
        m = clip(i, 0.0 - limit, limit)
    else:
        m = decay * v + drive
    h = m - threshold
    if o.stochastic:
        e = exp(0.0 - absolute(h) / temperature)
        p = where(h < 0.0, e, 1.0 + 0.0 * e) / (1.0 + e)
        if o.smooth:
            s = p
        else:
            s = spike(h - temperature * noise)
    else:
        s = spike(h)
    if o.port:
        y = g * s + b
        s = clip(y, low, high)
    # and back
    ds = ds + dz
    dm = dv * (1.0 - s)
    d_reset = dv * s
    if not o.detach:
        ds = ds + dv * (reset - m)
    if o.second:
        d_jump = du * s
        if not o.detach:
            ds = ds + du * jump
    else:
        d_jump = 0.0
    if o.port:
        ds = where((y < low) | (y > high), 0.0, ds * g)
    if o.stochastic:
        dh = ds * (p * (1.0 - p) / temperature)
        d_temperature = 0.0 - dh * h / temperature
    else:
        dh = ds * slope(h)
        d_temperature = 0.0
    dm = dm + dh
    if o.second:
        d_recovery = du * (coupling * m - u)
        d_coupling = du * recovery * m
        dm = dm + du * recovery * coupling
        du = du * (1.0 - recovery)
    else:
        d_recovery = 0.0
        d_coupling = 0.0
    if o.quadratic:
        dm = where((i < 0.0 - limit) | (i > limit), 0.0, dm)
        d_decay = 0.0 - dm * (v * v - v + drive)
        d_drive = dm * (1.0 - decay)
        dv = dm + d_drive * (2.0 * v - 1.0)
    else:
        d_decay = dm * v
        d_drive = dm
        dv = dm * decay
    if o.second:
        du = du - d_drive
    return (
        d_drive * gain, 0.0, dv, du, 0.0,
        d_decay, d_drive * x, 0.0 - dh, d_reset, d_temperature, d_recovery, d_coupling, d_jump,
    )  # fmt: skip


def _carried(o: Options) -> tuple[str, ...]:
    return ("v", "u") if o.second else ("v",)


def _used(o: Options) -> tuple[str, ...]:
    names = ["decay", "gain", "threshold", "reset"]
    names += ["temperature"] if o.stochastic else []
    names += ["recovery", "coupling", "jump"] if o.second else []
    return (*names, *(PORT if o.port else ()))


META_DYNAMICS = Dynamics(
    name="meta",
    step=step,
    adjoint=adjoint,
    inputs=("x", "noise"),
    states=("v", "u", "z"),
    echo="z",
    parameters=("decay", "gain", "threshold", "reset", "temperature", "recovery", "coupling", "jump"),
    settings=PORT,
    constants=("limit",),
    options={"second": True, "quadratic": False, "stochastic": False, "detach": False},
    carried=_carried,
    used=_used,
)
