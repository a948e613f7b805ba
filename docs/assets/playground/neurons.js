// Written by `python -m plexus.kernels._javascript` from the equations in plexus/kernels: change those, not this file.
globalThis.PlexusNeurons = (() => {
  "use strict";
  const where = (condition, yes, no) => (condition ? yes : no);
  const clip = (x, low, high) => (x < low ? low : x > high ? high : x);
  const absolute = Math.abs;
  const exp = Math.exp;
  const stop = (x) => x;
  const spike = (u) => (u > 0.0 ? 1.0 : 0.0);

  const models = {
    lif_soft: {
      memory: ["v", "z", "r"],
      numbers: ["decay", "gain", "threshold", "rest", "reset", "period"],
      step: (x, v, z, r, decay, gain, threshold, rest, reset, period) => {
        let m = decay * v + gain * x;
        m = where(r > 0.0, v, m);
        let s = spike(m - threshold);
        s = where(r > 0.0, 0.0, s);
        v = m;
        let y = s;
        v = m - y * threshold;
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r));
        return [s, v, s, r];
      },
    },
    lif_hard: {
      memory: ["v", "z", "r"],
      numbers: ["decay", "gain", "threshold", "rest", "reset", "period"],
      step: (x, v, z, r, decay, gain, threshold, rest, reset, period) => {
        let m = decay * v + gain * x;
        m = where(r > 0.0, v, m);
        let s = spike(m - threshold);
        s = where(r > 0.0, 0.0, s);
        v = m;
        let y = s;
        v = (1.0 - y) * m + y * reset;
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r));
        return [s, v, s, r];
      },
    },
    alif_soft: {
      memory: ["v", "a", "w", "z", "r"],
      numbers: ["decay", "gain", "threshold", "rest", "reset", "decay_a", "beta", "decay_w", "coupling", "kick", "period"],
      step: (x, v, a, w, z, r, decay, gain, threshold, rest, reset, decay_a, beta, decay_w, coupling, kick, period) => {
        let limit = threshold;
        a = decay_a * a + z;
        limit = threshold + beta * a;
        let current = x;
        let m = rest + decay * (v - rest) + gain * current;
        m = where(r > 0.0, v, m);
        let s = spike(m - limit);
        s = where(r > 0.0, 0.0, s);
        let y = s;
        v = m;
        v = m - y * limit;
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r));
        return [s, v, a, w, s, r];
      },
    },
    alif_hard: {
      memory: ["v", "a", "w", "z", "r"],
      numbers: ["decay", "gain", "threshold", "rest", "reset", "decay_a", "beta", "decay_w", "coupling", "kick", "period"],
      step: (x, v, a, w, z, r, decay, gain, threshold, rest, reset, decay_a, beta, decay_w, coupling, kick, period) => {
        let limit = threshold;
        a = decay_a * a + z;
        limit = threshold + beta * a;
        let current = x;
        let m = rest + decay * (v - rest) + gain * current;
        m = where(r > 0.0, v, m);
        let s = spike(m - limit);
        s = where(r > 0.0, 0.0, s);
        let y = s;
        v = m;
        v = (1.0 - y) * m + y * reset;
        r = where(s >= 0.5, period, where(r > 0.0, r - 1.0, r));
        return [s, v, a, w, s, r];
      },
    },
    adex: {
      memory: ["v", "w", "z", "r"],
      numbers: ["per_c", "leak", "e_leak", "v_threshold", "delta", "a", "per_w", "jump", "reset", "peak", "period"],
      step: (x, v, w, z, r, per_c, leak, e_leak, v_threshold, delta, a, per_w, jump, reset, peak, period) => {
        let n = where(v < peak, v, peak);
        let above = v - e_leak;
        let m = v + per_c * (leak * (delta * exp((n - v_threshold) / delta) - above) - w + x);
        let q = w + per_w * (a * above - w);
        let s = spike(m - peak);
        let y = s;
        v = (1.0 - y) * m + y * reset;
        w = q + s * jump;
        return [s, v, w, s, r];
      },
    },
    izhikevich_halved: {
      memory: ["v", "u", "z", "r"],
      numbers: ["rate", "coupling", "reset", "jump", "peak", "period", "dt"],
      step: (x, v, u, z, r, rate, coupling, reset, jump, peak, period, dt) => {
        let h = v + 0.5 * dt * ((0.04 * v + 5.0) * v + 140.0 - u + x);
        let m = h + 0.5 * dt * ((0.04 * h + 5.0) * h + 140.0 - u + x);
        let q = u + dt * rate * (coupling * m - u);
        let s = spike(m - peak);
        let y = s;
        v = (1.0 - y) * where(m < peak, m, peak) + y * reset;
        u = q + s * jump;
        return [s, v, u, s, r];
      },
    },
    izhikevich_whole: {
      memory: ["v", "u", "z", "r"],
      numbers: ["rate", "coupling", "reset", "jump", "peak", "period", "dt"],
      step: (x, v, u, z, r, rate, coupling, reset, jump, peak, period, dt) => {
        let m = v + dt * ((0.04 * v + 5.0) * v + 140.0 - u + x);
        let q = u + dt * rate * (coupling * m - u);
        let s = spike(m - peak);
        let y = s;
        v = (1.0 - y) * where(m < peak, m, peak) + y * reset;
        u = q + s * jump;
        return [s, v, u, s, r];
      },
    },
  };

  const surrogates = {
    arctan: (u, width) => {
      let a = u / width;
      return 1.0 / (1.0 + a * a);
    },
    fast_sigmoid: (u, width) => {
      let a = 1.0 + absolute(u) / width;
      return 1.0 / (a * a);
    },
    gaussian: (u, width) => {
      let a = u / width;
      return exp(0.0 - 0.5 * (a * a));
    },
    sigmoid: (u, width) => {
      let e = exp(0.0 - absolute(u) / width);
      let a = 1.0 + e;
      return 4.0 * e / (a * a);
    },
    straight_through: (u, width) => {
      return where(absolute(u) <= width, 1.0 + 0.0 * u, 0.0);
    },
    triangular: (u, width) => {
      let a = 1.0 - absolute(u) / width;
      return where(a > 0.0, a, 0.0);
    },
  };

  const widths = { arctan: 0.3183098861837907, fast_sigmoid: 0.1, gaussian: 0.5, sigmoid: 0.25, straight_through: Infinity, triangular: 1.0 };

  return { models, surrogates, widths };
})();
