"""Runs in the peers' environment: the same input through snnTorch, Norse, SpikingJelly and Brian2, spikes to a file.

python peers.py input.npz output.npz
"""

import sys

import numpy as np
import torch


def snntorch(x):
    import snntorch as snn

    for reset in ("subtract", "zero", "none"):
        for delay in (True, False):
            layer = snn.Leaky(beta=0.875, threshold=0.75, reset_mechanism=reset, reset_delay=delay).double()
            mem, spikes = torch.zeros_like(x[0]), []
            for current in x / 8:
                out, mem = layer(current, mem)
                spikes.append(out)
            yield f"snntorch {reset} {'delayed' if delay else 'at once'}", torch.stack(spikes)


def norse(x):
    from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_step
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step

    def number(value):
        return torch.tensor(value, dtype=torch.float64)

    numbers = {"tau_mem_inv": number(125.0), "v_leak": number(0.1), "v_th": number(0.75), "v_reset": number(-0.2)}
    state, spikes = LIFBoxFeedForwardState(v=torch.full_like(x[0], 0.1)), []
    for current in x:
        out, state = lif_box_feed_forward_step(current, state, LIFBoxParameters(**numbers), dt=0.001)
        spikes.append(out)
    yield "norse LIFBox", torch.stack(spikes)
    state, spikes = LIFFeedForwardState(v=torch.full_like(x[0], 0.1), i=torch.zeros_like(x[0])), []
    for current in x:
        p = LIFParameters(tau_syn_inv=number(250.0), **numbers)
        out, state = lif_feed_forward_step(current, state, p, dt=0.001)
        spikes.append(out)
    yield "norse LIF", torch.stack(spikes)


def spikingjelly(x):
    from spikingjelly.activation_based import functional, neuron

    for decay_input in (True, False):
        for v_reset in (None, 0.0, -0.25):
            layer = neuron.LIFNode(tau=4.0, decay_input=decay_input, v_threshold=0.75, v_reset=v_reset, step_mode="m")
            layer.backend = "torch"
            functional.reset_net(layer)
            yield f"spikingjelly decay_input={decay_input} v_reset={v_reset}", layer(x)


def brian2(x):
    import brian2 as b2

    b2.prefs.codegen.target = "numpy"
    steps, batch, units = x.shape
    for reset, code in (("soft", "v -= 0.75"), ("hard", "v = -0.1")):
        for refractory in (0, 1, 3):
            b2.start_scope()
            current = b2.TimedArray(x.reshape(steps, -1).numpy(), dt=1 * b2.ms)
            group = b2.NeuronGroup(
                batch * units,
                "dv/dt = (current(t, i) - v) / (8*ms) : 1 (unless refractory)",
                threshold="v > 0.75",
                reset=code,
                refractory=refractory * b2.ms,
                method="exact",
                dt=1 * b2.ms,
                namespace={"current": current},
            )
            monitor = b2.SpikeMonitor(group)
            b2.Network(group, monitor).run(steps * b2.ms)
            spikes = np.zeros((steps, batch * units))
            spikes[np.round(monitor.t / b2.ms).astype(int), np.asarray(monitor.i)] = 1
            yield f"brian2 {reset} {refractory}", torch.as_tensor(spikes).view(x.shape)


def main(source, target):
    x = torch.as_tensor(np.load(source)["x"])
    found = {}
    for peer in (snntorch, norse, spikingjelly, brian2):
        with torch.no_grad():
            found.update({name: spikes.numpy().astype(np.uint8) for name, spikes in peer(x)})
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
