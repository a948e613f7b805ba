"""Runs in the peers' environment and times one call whenever it is asked to: `name mode T B N` in, a JSON line out."""

from __future__ import annotations

import json
import sys

import torch
from _timing import device, peak_memory, settled


def snntorch(x):
    import snntorch as snn

    layer = snn.Leaky(beta=0.9, reset_mechanism="zero", spike_grad=snn.surrogate.atan(alpha=2.0))

    def run(x):
        mem, spikes = torch.zeros_like(x[0]), []
        for current in x:
            out, mem = layer(current, mem)
            spikes.append(out)
        return torch.stack(spikes)

    return run


def norse(x):
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxParameters

    cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(100.0)), dt=0.001)

    def run(x):
        state, spikes = None, []
        for current in x:
            out, state = cell(current, state)
            spikes.append(out)
        return torch.stack(spikes)

    return run


def spikingjelly(backend):
    def make(x):
        from spikingjelly.activation_based import functional, neuron, surrogate

        layer = neuron.LIFNode(
            tau=10.0, decay_input=False, v_reset=0.0, step_mode="m", surrogate_function=surrogate.ATan(alpha=2.0)
        )
        layer.backend = backend

        def run(x):
            functional.reset_net(layer)
            return layer(x)

        return run

    return make


PEERS = {
    "snntorch": snntorch,
    "norse": norse,
    "spikingjelly torch": spikingjelly("torch"),
    "spikingjelly inductor": spikingjelly("inductor"),
    "spikingjelly cupy": spikingjelly("cupy"),
    "spikingjelly triton": spikingjelly("triton"),
}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    device.use(sys.argv[2])
    ready: dict[tuple, object] = {}
    for line in sys.stdin:
        name, mode, *shape = line.rstrip("\n").split("\t")
        key = (name, mode, *shape)
        try:
            if not ready or key not in ready:
                with device.making():
                    x = torch.rand(*map(int, shape), requires_grad=mode != "forward")
                    grad = torch.rand_like(x)
                    run = PEERS[name](x)

                def call(x=x, grad=grad, run=run, mode=mode):
                    if mode == "forward":
                        with torch.no_grad():
                            return run(x)
                    return torch.autograd.grad(run(x), x, grad)

                call()
                call()
                ready[key] = call
            call = ready[key]
            answer = {"ms": settled(call), "peak_mb": peak_memory(call) if name and len(sys.argv) > 3 else None}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
