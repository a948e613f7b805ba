"""Runs in the peers' environment: times one training step whenever asked: `name case` in, a JSON line out.

Weight layers run over all of time at once. A recurrent layer is the input's product over all of time, then per step
one `addmm` and one call of the peer's single-step neuron.
"""

from __future__ import annotations

import json
import sys

import torch
from _spiking_nets import Folded, layers, training_step
from _timing import device, peak_memory, settled
from torch import nn


class Loop(nn.Module):
    """A single-step neuron, called step after step."""

    over_time = True

    def __init__(self, cell, size=None):
        super().__init__()
        self.cell = cell
        self.weight = None if size is None else nn.Parameter(torch.randn(size, size) * 0.2 / size**0.5)

    def forward(self, x):
        state, z, spikes = None, torch.zeros_like(x[0]), []
        for current in x:
            z, state = self.cell(current if self.weight is None else torch.addmm(current, z, self.weight.T), state)
            spikes.append(z)
        return torch.stack(spikes)


class SnnTorch(nn.Module):
    def __init__(self):
        super().__init__()
        import snntorch

        self.leaky = snntorch.Leaky(beta=0.9, reset_mechanism="zero", spike_grad=snntorch.surrogate.atan(alpha=2.0))

    def forward(self, x, membrane):
        return self.leaky(x, torch.zeros_like(x) if membrane is None else membrane)


def norse_cell():
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxParameters

    return LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(100.0)), dt=0.001)


class Jelly(nn.Module):
    """SpikingJelly's LIF, over all of time or step by step."""

    over_time = True

    def __init__(self, backend, mode="m"):
        super().__init__()
        from spikingjelly.activation_based import functional, neuron, surrogate

        self.reset = functional.reset_net
        self.node = neuron.LIFNode(
            tau=10.0, decay_input=False, v_reset=0.0, step_mode=mode, surrogate_function=surrogate.ATan(alpha=2.0)
        )
        if mode == "m":
            self.node.backend = backend

    def forward(self, x, state="many"):
        if state is None or state == "many":
            self.reset(self.node)
        out = self.node(x)
        return out if state == "many" else (out, 1)


PEERS = {
    "snntorch": (lambda _: Loop(SnnTorch()), lambda size: Loop(SnnTorch(), size)),
    "norse": (lambda _: Loop(norse_cell()), lambda size: Loop(norse_cell(), size)),
    "spikingjelly torch": (lambda _: Jelly("torch"), lambda size: Loop(Jelly("torch", "s"), size)),
    "spikingjelly inductor": (lambda _: Jelly("inductor"), lambda size: Loop(Jelly("torch", "s"), size)),
    "spikingjelly cupy": (lambda _: Jelly("cupy"), lambda size: Loop(Jelly("torch", "s"), size)),
    "spikingjelly triton": (lambda _: Jelly("triton"), lambda size: Loop(Jelly("torch", "s"), size)),
}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    device.use(sys.argv[2])
    ready: dict[tuple, object] = {}
    for line in sys.stdin:
        name, case = line.rstrip("\n").split("\t")
        try:
            if (name, case) not in ready:
                ready.clear()
                torch.manual_seed(0)
                with device.making():
                    step = training_step(Folded(layers(case, *PEERS[name])), case)
                step()
                ready[name, case] = step
                memory = peak_memory(step)
            answer = {"ms": settled(ready[name, case]), "peak_mb": memory}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
