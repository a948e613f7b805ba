// The playground: sliders over the neurons of neurons.js, which is written from the kernels. The first half is plain
// functions, which the tests run too; the second half draws the page. No library, nothing from the network.
globalThis.PlexusPlayground = (() => {
  "use strict";
  const { models, surrogates, widths } = globalThis.PlexusNeurons;

  // ---------------------------------------------------------------- neurons: sliders, and the numbers they stand for

  const slider = (key, label, unit, min, max, step, value) => ({ key, label, unit, min, max, step, value });
  const choice = (key, label, choices, value) => ({ key, label, choices, value });
  const decay = (dt, tau) => Math.exp(-dt / tau);
  const rounded = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python rounds
  const alphaOf = (p) => (p.method === "euler" ? 1 - p.dt / p.tau_mem : decay(p.dt, p.tau_mem));
  const RESETS = [["soft", "soft: v − θ"], ["hard", "hard: to a value"]];
  const SCALES = [["on", "1 − α"], ["off", "1"]];
  const MEMBRANE = [
    slider("tau_mem", "membrane τ", "ms", 3, 60, 0.5, 10),
    slider("threshold", "threshold", "", 0.2, 2, 0.05, 1),
  ];
  const SPIKE = [
    choice("reset", "reset", RESETS, "soft"),
    slider("reset_value", "hard reset to", "", -1, 0.9, 0.05, 0),
    slider("refractory", "refractory", "ms", 0, 20, 1, 0),
    choice("scale", "input weighed by", SCALES, "on"),
    slider("dt", "step dt", "ms", 0.1, 2, 0.1, 1),
  ];
  const named = (keys, table) =>
    Object.fromEntries(
      Object.entries(table).map(([name, row]) => [name, Object.fromEntries(keys.map((key, k) => [key, row[k]]))]),
    );

  const NEURONS = {
    lif: {
      title: "LIF",
      unit: "",
      equations: ["m = α v + κ x", "spike where m > θ, then reset"],
      controls: [
        ...MEMBRANE,
        ...SPIKE,
        choice("method", "α", [["exponential", "exp(−dt/τ)"], ["euler", "1 − dt/τ"]], "exponential"),
      ],
      amplitude: slider("amplitude", "current", "", 0, 5, 0.05, 1.5),
      noise: slider("noise", "noise per step", "", 0, 4, 0.05, 1),
      duration: 200,
      variant: (p) => `lif_${p.reset}`,
      numbers: (p) => ({
        decay: alphaOf(p),
        gain: p.scale === "on" ? 1 - alphaOf(p) : 1,
        threshold: p.threshold,
        rest: 0,
        reset: p.reset_value,
        period: rounded(p.refractory / p.dt),
      }),
      start: () => ({}),
      level: (p) => p.threshold,
    },
    alif: {
      title: "Adaptive LIF",
      unit: "",
      equations: ["a = ρ a + z,  θ = θ₀ + β a", "m = α v + κ x", "spike where m > θ, then reset"],
      controls: [
        ...MEMBRANE,
        slider("beta", "β, per spike", "", 0, 1, 0.01, 0.2),
        slider("tau_adapt", "adaptation τ", "ms", 10, 500, 5, 100),
        ...SPIKE,
      ],
      amplitude: slider("amplitude", "current", "", 0, 8, 0.05, 3),
      noise: slider("noise", "noise per step", "", 0, 4, 0.05, 1),
      duration: 400,
      variant: (p) => `alif_${p.reset}`,
      numbers: (p) => ({
        decay: alphaOf(p),
        gain: p.scale === "on" ? 1 - alphaOf(p) : 1,
        threshold: p.threshold,
        rest: 0,
        reset: p.reset_value,
        decay_a: decay(p.dt, p.tau_adapt),
        beta: p.beta,
        decay_w: 0,
        coupling: 0,
        kick: 0,
        period: rounded(p.refractory / p.dt),
      }),
      start: () => ({}),
      level: (p, state) => p.threshold + p.beta * state[1],
    },
    adex: {
      title: "AdEx",
      unit: "pA",
      equations: [
        "C v′ = −g(v − E) + g Δ exp((v − V)/Δ) − w + x",
        "τ w′ = a(v − E) − w",
        "spike where v > V + 5Δ, then v ← reset, w ← w + b",
      ],
      controls: [
        slider("capacitance", "capacitance C", "pF", 50, 400, 1, 200),
        slider("g_leak", "leak g", "nS", 2, 40, 0.5, 12),
        slider("e_leak", "rest E", "mV", -80, -55, 0.2, -70),
        slider("v_threshold", "onset V", "mV", -60, -40, 0.2, -50),
        slider("delta_t", "sharpness Δ", "mV", 0.5, 5, 0.1, 2),
        slider("a", "coupling a", "nS", -15, 15, 0.5, 2),
        slider("tau_w", "adaptation τ", "ms", 10, 500, 1, 300),
        slider("b", "jump b", "pA", 0, 200, 0.5, 60),
        slider("v_reset", "reset", "mV", -80, -42, 0.2, -58),
        slider("dt", "step dt", "ms", 0.05, 0.2, 0.05, 0.1),
      ],
      amplitude: slider("amplitude", "current", "pA", 0, 1200, 5, 500),
      noise: slider("noise", "noise per step", "pA", 0, 2000, 10, 500),
      duration: 400,
      // Naud et al. 2008, table 1: C, g, E, V, Δ, a, τ, b, reset, and the current that shows the pattern
      presets: named(
        ["capacitance", "g_leak", "e_leak", "v_threshold", "delta_t", "a", "tau_w", "b", "v_reset", "amplitude"],
        {
          "tonic spiking": [200, 10, -70, -50, 2, 2, 30, 0, -58, 500],
          adaptation: [200, 12, -70, -50, 2, 2, 300, 60, -58, 500],
          "initial burst": [130, 18, -58, -50, 2, 4, 150, 120, -50, 400],
          "regular bursting": [200, 10, -58, -50, 2, 2, 120, 100, -46, 210],
          "delayed accelerating": [200, 12, -70, -50, 2, -10, 300, 0, -58, 300],
          "delayed regular bursting": [100, 10, -65, -50, 2, -10, 90, 30, -47, 110],
          "transient spiking": [100, 10, -65, -50, 2, 10, 90, 100, -47, 180],
          "irregular spiking": [100, 12, -60, -50, 2, -11, 130, 30, -48, 160],
        },
      ),
      preset: "adaptation",
      variant: () => "adex",
      numbers: (p) => ({
        per_c: p.dt / p.capacitance,
        leak: p.g_leak,
        e_leak: p.e_leak,
        v_threshold: p.v_threshold,
        delta: p.delta_t,
        a: p.a,
        per_w: p.dt / p.tau_w,
        jump: p.b,
        reset: p.v_reset,
        peak: p.v_threshold + 5 * p.delta_t,
        period: 0,
      }),
      start: (p) => ({ v: p.e_leak }),
      level: (p) => p.v_threshold + 5 * p.delta_t,
      second: { index: 1, label: "adaptation w, pA" },
    },
    izhikevich: {
      title: "Izhikevich",
      unit: "mV/ms",
      equations: ["v′ = 0.04 v² + 5 v + 140 − u + x", "u′ = a(b v − u)", "spike where v > 30, then v ← c, u ← u + d"],
      controls: [
        slider("a", "recovery rate a", "1/ms", 0.005, 0.2, 0.005, 0.02),
        slider("b", "coupling b", "", 0.05, 0.35, 0.01, 0.2),
        slider("c", "reset c", "mV", -75, -40, 1, -65),
        slider("d", "jump d", "", 0, 10, 0.05, 8),
        choice("halved", "one step of dt is", [["on", "two of dt/2"], ["off", "one of dt"]], "on"),
        slider("dt", "step dt", "ms", 0.1, 1, 0.1, 0.5),
      ],
      amplitude: slider("amplitude", "current", "mV/ms", 0, 40, 0.25, 10),
      noise: slider("noise", "noise per step", "mV/ms", 0, 40, 0.25, 10),
      duration: 400,
      presets: named(["a", "b", "c", "d"], {
        RS: [0.02, 0.2, -65, 8],
        IB: [0.02, 0.2, -55, 4],
        CH: [0.02, 0.2, -50, 2],
        FS: [0.1, 0.2, -65, 2],
        LTS: [0.02, 0.25, -65, 2],
        TC: [0.02, 0.25, -65, 0.05],
        RZ: [0.1, 0.26, -65, 2],
      }),
      preset: "RS",
      variant: (p) => (p.halved === "on" ? "izhikevich_halved" : "izhikevich_whole"),
      numbers: (p) => ({ rate: p.a, coupling: p.b, reset: p.c, jump: p.d, peak: 30, period: 0, dt: p.dt }),
      start: (p) => {
        const linear = 5 - p.b;
        const inside = linear * linear - 4 * 0.04 * 140;
        const v = inside >= 0 ? (-linear - Math.sqrt(inside)) / 0.08 : -65;
        return { v, u: p.b * v };
      },
      level: () => 30,
      second: { index: 1, label: "recovery u" },
    },
  };

  /** The sliders' values before anybody moved one. */
  function defaults(kind) {
    return Object.fromEntries(NEURONS[kind].controls.map((control) => [control.key, control.value]));
  }

  function prepared(kind, p) {
    const neuron = NEURONS[kind];
    const model = models[neuron.variant(p)];
    const numbers = neuron.numbers(p);
    const start = neuron.start(p);
    return {
      step: model.step,
      numbers: model.numbers.map((name) => numbers[name]),
      state: model.memory.map((name) => start[name] ?? 0),
    };
  }

  /** Run a neuron on a list of currents: what it emits, and every state after every step. */
  function simulate(kind, p, input) {
    const { step, numbers, state: start } = prepared(kind, p);
    const spikes = [];
    const states = [];
    let state = start;
    for (const x of input) {
      const [s, ...next] = step(x, ...state, ...numbers);
      spikes.push(s);
      states.push(next);
      state = next;
    }
    return { spikes, states };
  }

  /** Spikes per second under a constant current, in the `counted` ms after `skipped` ms. */
  function rate(kind, p, current, counted = 1000, skipped = 200) {
    const { step, numbers, state: start } = prepared(kind, p);
    const from = Math.round(skipped / p.dt);
    const until = from + Math.round(counted / p.dt);
    let state = start;
    let spikes = 0;
    for (let t = 0; t < until; t += 1) {
      const [s, ...next] = step(current, ...state, ...numbers);
      if (t >= from) spikes += s;
      state = next;
    }
    return spikes / ((until - from) * p.dt * 0.001);
  }

  /** Normal random numbers from a seed, so that a slider's move does not change the noise (mulberry32, Box–Muller). */
  function normal(seed) {
    let a = seed >>> 0;
    const uniform = () => {
      a = (a + 0x6d2b79f5) | 0;
      let t = Math.imul(a ^ (a >>> 15), 1 | a);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  const stepsOf = (stimulus, dt) => Math.round(stimulus.duration / dt);
  const onsetOf = (stimulus, dt) => Math.round(stimulus.duration / dt / 10);

  /** The current at every step. */
  function currentOf(stimulus, dt) {
    const n = stepsOf(stimulus, dt);
    const onset = onsetOf(stimulus, dt);
    const draw = normal(stimulus.seed ?? 1);
    return Array.from({ length: n }, (_, t) => {
      if (stimulus.shape === "ramp") return (stimulus.amplitude * t) / (n - 1);
      if (stimulus.shape === "noise") return stimulus.amplitude + stimulus.noise * draw();
      return t < onset ? 0 : stimulus.amplitude;
    });
  }

  /** h·g(u / w). */
  const derivative = (surrogate, u) => surrogate.height * surrogates[surrogate.name](u, surrogate.width);

  // ---------------------------------------------------------------- the same neuron, for five libraries

  const PEERS = { plexus: "Plexus", snntorch: "snnTorch", norse: "Norse", spikingjelly: "SpikingJelly", brian2: "Brian2" };
  const number = (x) => {
    const text = String(Number(x.toPrecision(10)));
    return /[.e]/.test(text) ? text : `${text}.0`;
  };
  const lines = (...parts) => parts.flat().filter((part) => part !== null && part !== undefined).join("\n") + "\n";
  const call = (head, args) => [`${head}(`, ...args.filter(Boolean).map((arg) => `    ${arg},`), ")"];
  const says = (why) => ({ why });
  const written = (...parts) => ({ code: lines(...parts) });

  function torchInput({ p, stimulus }) {
    const n = stepsOf(stimulus, p.dt);
    const amplitude = number(stimulus.amplitude);
    const head = `# [time, batch, unit], steps of ${number(p.dt)} ms`;
    if (stimulus.shape === "ramp") return [head, `x = torch.linspace(0.0, ${amplitude}, ${n}).view(-1, 1, 1)`];
    if (stimulus.shape === "noise") {
      return [head, `x = ${amplitude} + ${number(stimulus.noise)} * torch.randn(${n}, 1, 1)`];
    }
    return [head, `x = torch.zeros(${n}, 1, 1)`, `x[${onsetOf(stimulus, p.dt)}:] = ${amplitude}`];
  }

  function numpyInput({ p, stimulus }) {
    const n = stepsOf(stimulus, p.dt);
    const amplitude = number(stimulus.amplitude);
    if (stimulus.shape === "ramp") return [`x = np.linspace(0.0, ${amplitude}, ${n})`];
    if (stimulus.shape === "noise") {
      return [`x = ${amplitude} + ${number(stimulus.noise)} * np.random.default_rng().normal(size=${n})`];
    }
    return [`x = np.zeros(${n})`, `x[${onsetOf(stimulus, p.dt)}:] = ${amplitude}`];
  }

  const alphaText = (p) =>
    p.method === "euler" ? `1 - ${number(p.dt)} / ${number(p.tau_mem)}` : `math.exp(-${number(p.dt)} / ${number(p.tau_mem)})`;

  /** A surrogate of the same shape and width in another library, and a remark where its height is another. */
  function surrogateIn(peer, { name, width, height }) {
    const found = {
      snntorch: {
        arctan: [`surrogate.atan(alpha=${number(2 / (Math.PI * width))})`, 1 / (Math.PI * width)],
        fast_sigmoid: [`surrogate.fast_sigmoid(slope=${number(1 / width)})`, 1],
        sigmoid: [`surrogate.sigmoid(slope=${number(1 / width)})`, 1 / (4 * width)],
      },
      spikingjelly: {
        arctan: [`surrogate.ATan(alpha=${number(2 / (Math.PI * width))})`, 1 / (Math.PI * width)],
        sigmoid: [`surrogate.Sigmoid(alpha=${number(1 / width)})`, 1 / (4 * width)],
      },
      norse: { fast_sigmoid: [`method="super", alpha=${number(1 / width)}`, 1] },
    }[peer][name];
    if (!found) return { text: null, note: `# surrogate: no verified counterpart of "${name}" here, so the default stands` };
    const same = Math.abs(found[1] / height - 1) < 0.005; // the slider's width has three digits
    const note = `# surrogate: the same shape and width; its height here is ${number(Number(found[1].toPrecision(4)))}`;
    return { text: found[0], note: same ? null : note };
  }

  const torchLoop = (inputs, neuron) => [
    "spikes = []",
    `for current in ${inputs}:`,
    `    spike, state = ${neuron}(current, state)`,
    "    spikes.append(spike)",
    "spikes = torch.stack(spikes)",
  ];

  const WRITE = {
    plexus: (kind, it) => {
      const { p, surrogate } = it;
      const args = {
        lif: () => [
          `tau_mem=${number(p.tau_mem)}`,
          `threshold=${number(p.threshold)}`,
          p.method === "euler" && 'discretisation="euler"',
        ],
        alif: () => ["tau_mem", "tau_adapt", "beta", "threshold"].map((key) => `${key}=${number(p[key])}`),
        adex: () =>
          ["capacitance", "g_leak", "e_leak", "v_threshold", "delta_t", "a", "tau_w", "b", "v_reset"].map(
            (key) => `${key}=${number(p[key])}`,
          ),
        izhikevich: () => [
          ...["a", "b", "c", "d"].map((key) => `${key}=${number(p[key])}`),
          p.halved === "off" && "halved=False",
        ],
      }[kind]();
      if (kind === "lif" || kind === "alif") {
        args.push(
          p.scale === "on" && "scale_input=True",
          p.reset === "hard" && `reset="hard"`,
          p.reset === "hard" && p.reset_value !== 0 && `reset_value=${number(p.reset_value)}`,
          p.refractory > 0 && `refractory=${number(p.refractory)}`,
        );
      }
      const height = surrogate.height === 1 ? "" : `, height=${number(surrogate.height)}`;
      args.push(
        `dt=${number(p.dt)}`,
        `surrogate=px.kernels.Surrogate("${surrogate.name}", width=${number(surrogate.width)}${height})`,
      );
      const name = { lif: "LIF", alif: "ALIF", adex: "AdEx", izhikevich: "Izhikevich" }[kind];
      return written(
        ["import torch", "", "import plexus as px", ""],
        torchInput(it),
        call(`neuron = px.nn.${name}`, ["1", ...args]),
        "spikes, state = neuron(x)",
      );
    },

    snntorch: (kind, it) => {
      const { p } = it;
      if (kind === "alif") return says("snnTorch has no neuron whose threshold adapts to its own spikes.");
      if (kind === "adex") return says("snnTorch has no adaptive exponential neuron.");
      if (kind === "izhikevich") return says("snnTorch has no Izhikevich neuron.");
      if (p.refractory > 0) return says("snntorch.Leaky has no refractory time. Set it to 0 to see the rest.");
      if (p.reset === "hard" && p.reset_value !== 0) {
        return says("snntorch.Leaky resets to 0 or by the threshold, to no other value.");
      }
      const { text, note } = surrogateIn("snntorch", it.surrogate);
      return written(
        ["import math", "", "import snntorch as snn", "import torch", text && "from snntorch import surrogate", ""].filter(
          (line) => line !== null,
        ),
        torchInput(it),
        `beta = ${alphaText(p)}`,
        p.reset === "soft" ? "# equal spikes as long as one reset takes the membrane below the threshold" : null,
        note,
        call("neuron = snn.Leaky", [
          "beta=beta",
          `threshold=${number(p.threshold)}`,
          `reset_mechanism="${p.reset === "soft" ? "subtract" : "zero"}"`,
          "reset_delay=False",
          text && `spike_grad=${text}`,
        ]),
        "state = torch.zeros_like(x[0])",
        torchLoop(p.scale === "on" ? "(1 - beta) * x" : "x", "neuron"),
      );
    },

    norse: (kind, it) => {
      const { p } = it;
      if (kind === "adex") {
        return says(
          "Norse's LIFAdEx asks one number to be both the onset of the exponential and the potential of a spike, and " +
            "puts a synapse before the membrane: it cannot express this setting.",
        );
      }
      if (kind === "izhikevich") {
        return says(
          "Norse's Izhikevich advances u with the potential of the step before, Plexus (as the paper) with the new one. " +
            "The differential equations agree, the spike trains of a given dt do not.",
        );
      }
      const cell = kind === "lif" ? "LIFBox" : "LSNN";
      if (p.reset === "soft") return says(`Norse's ${cell} resets to a value, never by the threshold: choose the hard reset.`);
      if (p.refractory > 0) return says(`Norse's ${cell} has no refractory time. Set it to 0 to see the rest.`);
      const { text, note } = surrogateIn("norse", it.surrogate);
      const dt = number(p.dt);
      const adaptive = kind === "alif";
      const module = adaptive ? "lsnn" : "lif_box";
      const state = adaptive
        ? [
            call(`state = LSNNFeedForwardState`, [
              "v=torch.zeros_like(x[0])",
              "i=torch.zeros_like(x[0])",
              `b=torch.full_like(x[0], ${number(p.threshold)})`,
            ]),
          ].flat()
        : ["state = LIFBoxFeedForwardState(v=torch.zeros_like(x[0]))"];
      return written(
        ["import math", "", "import torch"],
        call(`from norse.torch.functional.${module} import `, [
          `${cell}FeedForwardState`,
          `${cell}Parameters`,
          `${module}_feed_forward_step`,
        ]),
        "",
        torchInput(it),
        `alpha = ${alphaText(p)}`,
        adaptive ? `rho = math.exp(-${dt} / ${number(p.tau_adapt)})` : null,
        adaptive ? "# its input passes a synapse, here as short as a step: every spike comes one step later" : null,
        note,
        call(`p = ${cell}Parameters`, [
          `tau_mem_inv=torch.tensor((1 - alpha) / ${number(p.dt / 1000)})`,
          adaptive && `tau_syn_inv=torch.tensor(${number(1000 / p.dt)})`,
          adaptive && `tau_adapt_inv=torch.tensor((1 - rho) / ${number(p.dt / 1000)})`,
          adaptive && `beta=torch.tensor(${number(p.beta)} / rho)`,
          "v_leak=torch.tensor(0.0)",
          `v_th=torch.tensor(${number(p.threshold)})`,
          `v_reset=torch.tensor(${number(p.reset_value)})`,
          text,
        ]),
        state,
        "spikes = []",
        `for current in ${p.scale === "on" ? "x" : "x / (1 - alpha)"}:`,
        `    spike, state = ${module}_feed_forward_step(current, state, p, dt=${number(p.dt / 1000)})`,
        "    spikes.append(spike)",
        "spikes = torch.stack(spikes)",
      );
    },

    spikingjelly: (kind, it) => {
      const { p } = it;
      if (kind === "alif") return says("SpikingJelly has no LIF neuron whose threshold adapts to its own spikes.");
      if (kind === "adex") return says("SpikingJelly has an exponential neuron (EIFNode), without the adaptation current.");
      const { text, note } = surrogateIn("spikingjelly", it.surrogate);
      const imports = ["import torch", `from spikingjelly.activation_based import neuron${text ? ", surrogate" : ""}`, ""];
      const end = [text && `surrogate_function=${text}`, 'step_mode="m"'];
      if (kind === "izhikevich") {
        if (p.halved === "on") {
          return says("SpikingJelly's IzhikevichNode takes one Euler step of dt, not two of dt/2: choose “one of dt”.");
        }
        if (p.dt >= 1) return says("SpikingJelly's IzhikevichNode wants a step below 1 ms (its tau, 1/dt, above 1).");
        const start = NEURONS.izhikevich.start(p);
        return written(
          imports,
          torchInput(it),
          "# 0.04 v² + 5 v + 140 = 0.04 (v - low) (v - high), and its w is u - b low",
          "low, high = (-5 - 2.6**0.5) / 0.08, (-5 + 2.6**0.5) / 0.08",
          "# it spikes at v = 30 as well",
          note,
          call("node = neuron.IzhikevichNode", [
            `tau=${number(1 / p.dt)}`,
            "v_c=high",
            "a0=0.04",
            "v_threshold=30.0",
            `v_reset=${number(p.c)}`,
            "v_rest=low",
            `tau_w=1 / (${number(p.dt)} * ${number(p.a)})`,
            `a=${number(p.b)}`,
            `b=${number(p.d)}`,
            ...end,
          ]),
          `node.v = torch.full_like(x[0], ${number(start.v)})`,
          `node.w = torch.full_like(x[0], ${number(start.u)} - ${number(p.b)} * low)`,
          `spikes = node(x - ${number(p.b)} * low)`,
        );
      }
      if (p.refractory > 0) return says("SpikingJelly's LIFNode has no refractory time. Set it to 0 to see the rest.");
      if (p.reset === "hard" && p.reset_value !== 0) {
        return says("SpikingJelly's LIFNode decays to where it resets, so that here only a hard reset to 0 is the same neuron.");
      }
      return written(
        p.method === "euler" ? null : ["import math", ""],
        imports,
        torchInput(it),
        "# it spikes at v = threshold as well",
        note,
        call("node = neuron.LIFNode", [
          p.method === "euler" ? `tau=${number(p.tau_mem)} / ${number(p.dt)}` : `tau=1 / (1 - ${alphaText(p)})`,
          `decay_input=${p.scale === "on" ? "True" : "False"}`,
          `v_threshold=${number(p.threshold)}`,
          `v_reset=${p.reset === "soft" ? "None" : "0.0"}`,
          ...end,
        ]),
        "spikes = node(x)",
      );
    },

    brian2: (kind, it) => {
      const { p } = it;
      const head = ["import brian2 as b2", "import numpy as np", ""];
      const input = (unit) => [
        `dt = ${number(p.dt)} * b2.ms`,
        ...numpyInput(it),
        `current = b2.TimedArray(x${unit}, dt=dt)`,
      ];
      const run = [
        "monitor = b2.SpikeMonitor(group)",
        "b2.Network(group, monitor).run(len(x) * dt)",
        "spikes = np.zeros(len(x))",
        "spikes[np.round(monitor.t / dt).astype(int)] = 1",
      ];
      if (kind === "adex") {
        const units = ["C pF capacitance", "g nS g_leak", "E mV e_leak", "V mV v_threshold", "D mV delta_t"];
        units.push("a nS a", "tau ms tau_w", "b pA b", "reset mV v_reset");
        return written(
          head,
          input(" * b2.pA"),
          units.map((row) => row.split(" ")).map(([name, unit, key]) => `${name} = ${number(p[key])} * b2.${unit}`),
          "peak = V + 5 * D",
          'equations = """',
          "dv/dt = (g * (D * exp((v - V) / D) - (v - E)) - w + current(t)) / C : volt",
          "dw/dt = (a * (v - E) - w) / tau : amp",
          '"""',
          call("group = b2.NeuronGroup", [
            "1",
            "equations",
            'threshold="v > peak"',
            'reset="v = reset; w += b"',
            'method="euler"',
            "dt=dt",
          ]),
          "group.v = E",
          run,
        );
      }
      if (kind === "izhikevich") {
        const part = number(p.halved === "on" ? p.dt / 2 : p.dt);
        const v = `v += ${part} * ((0.04 * v + 5) * v + 140 - u + current(t))`;
        const start = NEURONS.izhikevich.start(p);
        return written(
          head,
          input(""),
          call("group = b2.NeuronGroup", [
            "1",
            '"v : 1\\nu : 1"',
            'threshold="v > 30"',
            `reset="v = ${number(p.c)}; u += ${number(p.d)}"`,
            "dt=dt",
          ]),
          "# the steps of the paper: v first, and u with the new v",
          'steps = """',
          v,
          p.halved === "on" ? v : null,
          `u += ${number(p.dt)} * ${number(p.a)} * (${number(p.b)} * v - u)`,
          '"""',
          'group.run_regularly(steps, dt=dt, when="groups")',
          `group.v, group.u = ${number(start.v)}, ${number(start.u)}`,
          run,
        );
      }
      const adaptive = kind === "alif";
      const plain = p.scale === "on";
      const limit = adaptive ? `${number(p.threshold)} + ${number(p.beta)} * a` : number(p.threshold);
      const reset = p.reset === "soft" ? `v -= ${limit}` : `v = ${number(p.reset_value)}`;
      const wait = rounded(p.refractory / p.dt);
      return written(
        plain ? head : ["import math", "", ...head],
        input(plain ? "" : ` / (1 - ${alphaText(p)})`),
        'equations = """',
        `dv/dt = (current(t) - v) / (${number(p.tau_mem)} * ms) : 1 (unless refractory)`,
        adaptive ? `da/dt = -a / (${number(p.tau_adapt)} * ms) : 1` : null,
        '"""',
        wait > 0 ? "# it counts the step of the spike as refractory, too" : null,
        call("group = b2.NeuronGroup", [
          "1",
          "equations",
          `threshold="v > ${limit}"`,
          `reset="${reset}${adaptive ? `; a += exp(dt / (${number(p.tau_adapt)} * ms))` : ""}"`,
          wait > 0 && `refractory=${wait + 1} * dt`,
          `method="${p.method === "euler" ? "euler" : "exact"}"`,
          "dt=dt",
        ]),
        run,
      );
    },
  };

  /** The neuron in the words of a library: `{code}`, or `{why}` where it cannot be said there. */
  function snippet(peer, kind, setting) {
    return WRITE[peer](kind, setting);
  }

  // ---------------------------------------------------------------- the page

  const escaped = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const short = (x) => String(Number(x.toPrecision(4))).replace("-", "−");

  function ticks([low, high], wanted) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(k * step);
    return found;
  }

  /** An SVG chart: lines, vertical strokes and dots between two axes. Colours come from the style sheet. */
  function chart(host, { title, height, x, y, xLabel, yLabel, lines: drawn, strokes = [], dots = [] }) {
    const width = Math.max(220, host.clientWidth);
    const edge = { left: 46, right: 10, top: 8, bottom: xLabel ? 36 : 20 };
    const across = (v) => edge.left + ((v - x[0]) / (x[1] - x[0])) * (width - edge.left - edge.right);
    const up = (v) => height - edge.bottom - ((v - y[0]) / (y[1] - y[0])) * (height - edge.top - edge.bottom);
    const at = (px, py) => `${across(px).toFixed(1)} ${up(py).toFixed(1)}`;
    const clipId = `pg-clip-${host.dataset.plot}`;
    const grid = [
      ...ticks(x, Math.max(3, Math.floor(width / 70))).map(
        (v) =>
          `<path class="pg-grid" d="M${at(v, y[0])}L${at(v, y[1])}"/>` +
          `<text x="${across(v).toFixed(1)}" y="${height - edge.bottom + 15}" text-anchor="middle">${short(v)}</text>`,
      ),
      ...ticks(y, Math.max(2, Math.floor(height / 45))).map(
        (v) =>
          `<path class="pg-grid" d="M${at(x[0], v)}L${at(x[1], v)}"/>` +
          `<text x="${edge.left - 6}" y="${(up(v) + 4).toFixed(1)}" text-anchor="end">${short(v)}</text>`,
      ),
    ];
    const paths = drawn.map(({ points, kind }) => {
      const d = points.map(([px, py], k) => `${k ? "L" : "M"}${at(px, py)}`).join("");
      return `<path class="pg-line pg-${kind}" d="${d}"/>`;
    });
    const spikes = strokes.map(([px, from, to]) => `M${at(px, from)}L${at(px, to)}`).join("");
    const marks = dots.map(([px, py]) => `<circle r="4.5" cx="${across(px).toFixed(1)}" cy="${up(py).toFixed(1)}"/>`);
    host.innerHTML = `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">
      <clipPath id="${clipId}"><rect x="${edge.left}" y="${edge.top - 4}" width="${width - edge.left - edge.right}" height="${height - edge.top - edge.bottom + 8}"/></clipPath>
      ${grid.join("")}<g clip-path="url(#${clipId})">${paths.join("")}<path class="pg-line pg-spike" d="${spikes}"/>${marks.join("")}</g>
      ${xLabel ? `<text class="pg-label" x="${(edge.left + width - edge.right) / 2}" y="${height - 4}" text-anchor="middle">${escaped(xLabel)}</text>` : ""}
      <text class="pg-label" transform="translate(11 ${(edge.top + height - edge.bottom) / 2}) rotate(-90)" text-anchor="middle">${escaped(yLabel)}</text></svg>`;
  }

  /** The points of a curve, at most a few for each pixel: of many the lowest and the highest. */
  function thinned(values, dt, room) {
    const size = Math.ceil(values.length / room);
    if (size <= 2) return values.map((v, t) => [t * dt, v]);
    const points = [];
    for (let first = 0; first < values.length; first += size) {
      let low = first;
      let high = first;
      for (let t = first; t < Math.min(first + size, values.length); t += 1) {
        if (values[t] < values[low]) low = t;
        if (values[t] > values[high]) high = t;
      }
      for (const t of low < high ? [low, high] : [high, low]) points.push([t * dt, values[t]]);
    }
    return points;
  }

  function span(values, floor = 1e-9) {
    let low = Infinity;
    let high = -Infinity;
    for (const v of values) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    const margin = Math.max((high - low) * 0.06, floor);
    return [low - margin, high + margin];
  }

  const HIGHLIGHT = /(#[^\n]*)|("""|"(?:[^"\\\n]|\\.)*")|\b(import|from|for|in|None|True|False)\b|\b(\d[\d.e]*)\b/g;

  function highlighted(code) {
    let html = "";
    let last = 0;
    for (const match of code.matchAll(HIGHLIGHT)) {
      const kind = ["comment", "string", "keyword", "number"].find((_, k) => match[k + 1]);
      html += escaped(code.slice(last, match.index)) + `<span class="pg-${kind}">${escaped(match[0])}</span>`;
      last = match.index + match[0].length;
    }
    return html + escaped(code.slice(last));
  }

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // a page opened from disk may have no clipboard of its own
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  function surrogateDefault(kind, name = "arctan") {
    const millivolt = kind === "adex" || kind === "izhikevich" ? 10 : 1; // as `plexus.nn` does on a membrane in mV
    const width = Number.isFinite(widths[name]) ? widths[name] : 0.5;
    return { name, width: Number((width * millivolt).toPrecision(3)), height: 1 / millivolt };
  }

  function mount(root) {
    const settings = {};
    for (const kind of Object.keys(NEURONS)) {
      const neuron = NEURONS[kind];
      const stimulus = { shape: "step", noise: neuron.noise.value, duration: neuron.duration, seed: 1 };
      stimulus.amplitude = neuron.amplitude.value;
      settings[kind] = { p: defaults(kind), stimulus, surrogate: surrogateDefault(kind), preset: neuron.preset };
    }
    const initial = JSON.stringify(settings);
    let kind = "lif";
    let peer = "plexus";
    let timer = 0;
    let frame = 0;

    root.innerHTML = `
      <div class="pg-tabs" role="group" aria-label="Neuron" data-part="kinds"></div>
      <div class="pg-columns">
        <form class="pg-controls" data-part="controls" onsubmit="return false"></form>
        <div class="pg-plots">
          <p class="pg-summary" data-part="summary" aria-live="polite"></p>
          <div data-plot="membrane"></div><div data-plot="second"></div><div data-plot="current"></div>
          <div class="pg-pair">
            <figure><div data-plot="rate"></div><figcaption>f–I curve: spikes per second under a constant current, counted for 1 s after the first 0.2 s; the dot is the current chosen.</figcaption></figure>
            <figure><div data-plot="surrogate"></div><figcaption>The surrogate derivative of the spike; pale: the other kinds at their usual widths.</figcaption></figure>
          </div>
        </div>
      </div>
      <div class="pg-tabs" role="group" aria-label="Library" data-part="peers"></div>
      <div class="pg-snippet"><button type="button" class="pg-copy" data-part="copy">Copy</button><pre class="pg-code" tabindex="0" data-part="code"></pre></div>`;
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const plot = (name) => root.querySelector(`[data-plot="${name}"]`);

    function tabs(host, names, chosen, choose) {
      host.innerHTML = "";
      for (const [key, label] of names) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = label;
        button.setAttribute("aria-pressed", String(key === chosen));
        button.onclick = () => choose(key);
        host.append(button);
      }
    }

    function row(control, value, change) {
      const label = document.createElement("label");
      label.className = "pg-row";
      const name = `<span>${escaped(control.label)}</span>`;
      if (control.choices) {
        const options = control.choices.map(
          ([key, text]) => `<option value="${escaped(key)}"${key === value ? " selected" : ""}>${escaped(text)}</option>`,
        );
        label.innerHTML = `${name}<select>${options.join("")}</select>`;
        label.querySelector("select").onchange = (event) => change(event.target.value);
        return label;
      }
      const unit = control.unit ? ` ${control.unit}` : "";
      label.innerHTML = `${name}<output></output><input type="range" min="${control.min}" max="${control.max}" step="${control.step}">`;
      const input = label.querySelector("input");
      const output = label.querySelector("output");
      const show = (v) => {
        output.textContent = short(v) + unit;
        input.setAttribute("aria-valuetext", output.textContent);
      };
      input.value = value;
      show(value);
      input.oninput = () => {
        show(Number(input.value));
        change(Number(input.value));
      };
      return label;
    }

    function group(title, rows) {
      const set = document.createElement("fieldset");
      set.innerHTML = `<legend>${escaped(title)}</legend>`;
      set.append(...rows.filter(Boolean));
      return set;
    }

    function controls() {
      const neuron = NEURONS[kind];
      const now = settings[kind];
      const { p, stimulus, surrogate } = now;
      const rebuild = () => {
        controls();
        draw();
      };
      const presets = neuron.presets && {
        label: "pattern",
        choices: [["", "own"], ...Object.keys(neuron.presets).map((name) => [name, name])],
      };
      const equations = document.createElement("p");
      equations.className = "pg-equations";
      equations.textContent = neuron.equations.join("\n");
      const hidden = (control) => control.key === "reset_value" && p.reset !== "hard";
      const neuronRows = neuron.controls
        .filter((control) => !hidden(control))
        .map((control) =>
          row(control, p[control.key], (value) => {
            p[control.key] = value;
            if (now.preset && control.key !== "dt" && control.key !== "halved") {
              now.preset = "";
              root.querySelector("select").value = "";
            }
            if (control.key === "reset") rebuild();
            else draw();
          }),
        );
      const chosen = (name) => {
        now.preset = name;
        const { amplitude, ...numbers } = neuron.presets[name] ?? {};
        Object.assign(p, numbers);
        if (amplitude) Object.assign(stimulus, { amplitude, shape: "step" });
        rebuild();
      };
      const shapes = [["step", "step"], ["ramp", "ramp"], ["noise", "noise"]];
      const again = document.createElement("button");
      again.type = "button";
      again.textContent = "Draw new noise";
      again.onclick = () => {
        stimulus.seed += 1;
        draw();
      };
      const reset = document.createElement("button");
      reset.type = "button";
      reset.textContent = "Reset this neuron";
      reset.onclick = () => {
        settings[kind] = JSON.parse(initial)[kind];
        rebuild();
      };
      const noisy = stimulus.shape === "noise";
      const millivolt = surrogateDefault(kind).height < 1 ? 10 : 1;
      const unit = millivolt === 10 ? "mV" : "";
      const set = (object, key) => (value) => {
        object[key] = value;
        draw();
      };
      const host = part("controls");
      host.innerHTML = "";
      host.append(
        group(neuron.title, [equations, presets && row(presets, now.preset, chosen), ...neuronRows]),
        group("Current", [
          row({ label: "shape", choices: shapes }, stimulus.shape, (value) => {
            stimulus.shape = value;
            rebuild();
          }),
          row(neuron.amplitude, stimulus.amplitude, set(stimulus, "amplitude")),
          noisy && row(neuron.noise, stimulus.noise, set(stimulus, "noise")),
          row(slider("duration", "duration", "ms", 50, 1000, 50), stimulus.duration, set(stimulus, "duration")),
          noisy && again,
        ]),
        group("Surrogate derivative", [
          row({ label: "kind", choices: Object.keys(surrogates).map((n) => [n, n.replace("_", " ")]) }, surrogate.name, (name) => {
            now.surrogate = surrogateDefault(kind, name);
            rebuild();
          }),
          row(slider("width", "width", unit, 0.02 * millivolt, 2 * millivolt, 0.001 * millivolt), surrogate.width, set(surrogate, "width")),
          row(slider("height", "height", "", 0.05 / millivolt, 2 / millivolt, 0.05 / millivolt), surrogate.height, set(surrogate, "height")),
        ]),
        reset,
      );
    }

    function drawTrace() {
      const neuron = NEURONS[kind];
      const { p, stimulus } = settings[kind];
      const input = currentOf(stimulus, p.dt);
      const { spikes, states } = simulate(kind, p, input);
      const v = states.map((state) => state[0]);
      const level = states.map((state) => neuron.level(p, state));
      const times = spikes.flatMap((s, t) => (s ? [t] : []));
      const room = plot("membrane").clientWidth * 2;
      const x = [0, stimulus.duration];
      let [low, high] = span([...[...v, ...level].filter(Number.isFinite)], 0.05);
      const top = high + (high - low) * 0.12;
      const unit = neuron.unit ? `, ${neuron.unit}` : "";
      const membrane = `membrane v${kind === "lif" || kind === "alif" ? "" : ", mV"}`;
      chart(plot("membrane"), {
        title: `Membrane potential of the ${neuron.title} neuron, with its spikes`,
        height: root.clientWidth < 600 ? 170 : 220,
        x,
        y: [low, top],
        yLabel: membrane,
        lines: [
          { points: thinned(level, p.dt, room), kind: "level" },
          { points: thinned(v, p.dt, room), kind: "main" },
        ],
        strokes: times.map((t) => [t * p.dt, v[t], top]),
      });
      plot("second").hidden = !neuron.second;
      if (neuron.second) {
        const w = states.map((state) => state[neuron.second.index]);
        chart(plot("second"), {
          title: neuron.second.label,
          height: 110,
          x,
          y: span(w, 0.05),
          yLabel: neuron.second.label,
          lines: [{ points: thinned(w, p.dt, room), kind: "second" }],
        });
      }
      chart(plot("current"), {
        title: "Input current",
        height: 110,
        x,
        y: span([0, ...input], 0.05),
        xLabel: "time, ms",
        yLabel: `current${unit}`,
        lines: [{ points: thinned(input, p.dt, room), kind: "current" }],
      });
      const gaps = times.slice(1).map((t, k) => (t - times[k]) * p.dt);
      const count = `${times.length} spike${times.length === 1 ? "" : "s"} in ${stimulus.duration} ms`;
      part("summary").textContent =
        gaps.length > 1 ? `${count}; first interval ${short(gaps[0])} ms, last ${short(gaps[gaps.length - 1])} ms.` : `${count}.`;
    }

    function drawRate() {
      const neuron = NEURONS[kind];
      const { p, stimulus } = settings[kind];
      const { max } = neuron.amplitude;
      const points = Array.from({ length: 41 }, (_, k) => [(max * k) / 40, rate(kind, p, (max * k) / 40)]);
      const here = rate(kind, p, stimulus.amplitude);
      chart(plot("rate"), {
        title: "Rate as a function of the current",
        height: 210,
        x: [0, max],
        y: [0, Math.max(10, here, ...points.map(([, r]) => r)) * 1.06],
        xLabel: `current${neuron.unit ? `, ${neuron.unit}` : ""}`,
        yLabel: "spikes per s",
        lines: [{ points, kind: "main" }],
        dots: [[stimulus.amplitude, here]],
      });
    }

    function drawSurrogate() {
      const { surrogate } = settings[kind];
      const scale = surrogateDefault(kind).height < 1 ? 10 : 1;
      const reach = 2 * scale;
      const us = Array.from({ length: 401 }, (_, k) => (reach * (k - 200)) / 200);
      const curve = (one) => us.map((u) => [u, derivative(one, u)]);
      const others = Object.keys(surrogates).filter((name) => name !== surrogate.name && name !== "straight_through");
      chart(plot("surrogate"), {
        title: `Surrogate derivative, ${surrogate.name}`,
        height: 210,
        x: [-reach, reach],
        y: [0, Math.max(surrogate.height, 1 / scale) * 1.08],
        xLabel: `v − θ${scale === 10 ? ", mV" : ""}`,
        yLabel: "dz/dv",
        lines: [
          ...others.map((name) => ({ points: curve(surrogateDefault(kind, name)), kind: "pale" })),
          { points: curve(surrogate), kind: "second" },
        ],
      });
    }

    function drawCode() {
      const { code, why } = snippet(peer, kind, settings[kind]);
      const host = part("code");
      host.classList.toggle("pg-why", !code);
      host.innerHTML = code ? highlighted(code) : escaped(why);
      part("copy").hidden = !code;
    }

    function draw() {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => {
        drawTrace();
        drawSurrogate();
        drawCode();
      });
      clearTimeout(timer);
      timer = setTimeout(drawRate, 60); // 41 seconds of the neuron's life: once the slider rests
    }

    function pickKind(chosen) {
      kind = chosen;
      tabs(part("kinds"), Object.entries(NEURONS).map(([key, { title }]) => [key, title]), kind, pickKind);
      controls();
      draw();
    }

    function pickPeer(chosen) {
      peer = chosen;
      tabs(part("peers"), Object.entries(PEERS), peer, pickPeer);
      drawCode();
    }

    part("copy").onclick = async (event) => {
      await copied(snippet(peer, kind, settings[kind]).code);
      const button = event.target;
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1200);
    };
    const [, wantedKind, wantedPeer] = location.hash.match(/^#(\w+)(?:-(\w+))?$/) ?? [];
    pickKind(wantedKind in NEURONS ? wantedKind : "lif");
    pickPeer(wantedPeer in PEERS ? wantedPeer : "plexus");
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (root.clientWidth !== width) {
        width = root.clientWidth;
        draw();
      }
    }).observe(root);
  }

  if (typeof document !== "undefined") mount(document.getElementById("plexus-playground"));

  return { NEURONS, PEERS, currentOf, defaults, derivative, rate, simulate, snippet, surrogateDefault };
})();
