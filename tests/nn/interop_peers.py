"""Runs in the peers' environment, with Plexus on the path: what the peers make of our graphs, and we of their weights.

python interop_peers.py folder
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import nir
import torch
from torch import nn


def run_norse(graph, x, dt):
    import norse.torch as norse

    net = norse.from_nir(graph, ignore_warnings=True, dt=dt)
    state, out = None, []
    for row in x:
        z, state = net(row, state)
        out.append(z)
    return torch.stack(out)


def run_snntorch(graph, x):
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        net = import_from_nir(graph)
    state, out = None, []
    for row in x:
        z, state = net(row, state)
        out.append(z)
    return torch.stack(out)


def graphs(folder):
    """Our networks' graphs, run by the peers on the same input."""
    found = {}
    for path in sorted(folder.glob("*.nir")):
        peer, _, dt = path.stem.split("-")
        x = torch.load(path.with_suffix(".x.pt"), weights_only=True)
        graph = nir.read(path)
        try:
            out = run_norse(graph, x, float(dt) / 1000) if peer == "norse" else run_snntorch(graph, x)
        except Exception as error:
            found[path.stem] = f"{type(error).__name__}: {error}"
            continue
        torch.save(out.detach(), path.with_suffix(".z.pt"))
        found[path.stem] = float(out.detach().mean())
    return found


def weights():
    """The peers' networks, and ours made from them, on the same input."""
    import snntorch as snn
    from spikingjelly.activation_based import functional, layer, neuron

    from plexus.nn.interop import from_snntorch, from_spikingjelly

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    x = 2 * torch.rand(80, 4, 6)
    found = {}

    def compare(name, theirs, ours):
        found[name] = {
            "differ": int((theirs != ours).sum()),
            "rate": float(theirs.detach().mean()),
            "count": theirs.numel(),
        }

    for reset in ("subtract", "zero", "none"):
        for delay in (True, False):
            net = nn.Sequential(
                nn.Linear(6, 8),
                snn.Leaky(beta=0.8, reset_mechanism=reset, reset_delay=delay, threshold=0.6),
                nn.Linear(8, 5),
                snn.Leaky(beta=torch.rand(5), reset_mechanism=reset, reset_delay=delay, threshold=0.3),
            )
            calm = reset == "subtract" and not delay
            if calm:  # it subtracts once more where a potential is above the threshold after the reset; ours does not
                for linear in (net[0], net[2]):
                    linear.weight.data *= 0.2
                    linear.bias.data *= 0.2
            mems, out, over = [torch.zeros(4, 8), torch.zeros(4, 5)], [], 0
            for row in x:
                first, mems[0] = net[1](net[0](row), mems[0])
                second, mems[1] = net[3](net[2](first.to(x)), mems[1])  # its spikes are float32
                out.append(second)
                over += int((mems[0] > 0.6).sum() + (mems[1] > 0.3).sum())
            assert not (calm and over), over
            compare(f"snntorch leaky {reset} {delay}", torch.stack(out), from_snntorch(net, x[0])(x)[0])
    synaptic = nn.Sequential(
        nn.Linear(6, 8), snn.Synaptic(alpha=0.7, beta=0.8, reset_mechanism="zero", reset_delay=False)
    )
    syn, mem, out = torch.zeros(4, 8), torch.zeros(4, 8), []
    for row in x:
        z, syn, mem = synaptic[1](synaptic[0](row), syn, mem)
        out.append(z)
    compare("snntorch synaptic", torch.stack(out), from_snntorch(synaptic, x[0])(x)[0])
    for name, node in {
        "if soft": lambda: neuron.IFNode(v_threshold=0.7, v_reset=None),
        "if hard": lambda: neuron.IFNode(v_threshold=0.7, v_reset=0.1),
        "lif": lambda: neuron.LIFNode(tau=3.0, v_threshold=0.1),
        "lif soft": lambda: neuron.LIFNode(tau=3.0, v_threshold=0.4, v_reset=None, decay_input=False),
        "plif": lambda: neuron.ParametricLIFNode(init_tau=4.0, v_threshold=0.06, v_reset=-0.05),
    }.items():
        net = nn.Sequential(layer.Linear(6, 8), node(), layer.Linear(8, 5), node())
        functional.set_step_mode(net, "m")
        functional.reset_net(net)
        with torch.no_grad():
            theirs = net(x)
        compare(f"spikingjelly {name}", theirs, from_spikingjelly(net, x[0])(x)[0])
    return found


def readers():
    """Which of NIR's nodes each peer builds, found by trying."""
    import numpy as np

    one = np.ones(3)
    shape, image = {"input": np.array([3])}, {"input": np.array([2, 4, 4])}
    nodes = {
        "Affine": (nir.Affine(np.eye(3), one), shape),
        "Linear": (nir.Linear(np.eye(3)), shape),
        "Conv2d": (nir.Conv2d((4, 4), np.ones((2, 2, 3, 3)), (1, 1), (1, 1), (1, 1), 1, np.ones(2)), image),
        "Flatten": (nir.Flatten(image, 0, -1), image),
        "AvgPool2d": (nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), image),
        "SumPool2d": (nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), image),
        "IF": (nir.IF(one, one), shape),
        "LIF": (nir.LIF(one, 1e4 * one, 0 * one, one), shape),
        "LI": (nir.LI(one, one, 0 * one), shape),
        "I": (nir.I(one), shape),
        "CubaLIF": (nir.CubaLIF(one, one, one, 0 * one, one), shape),  # snnTorch wants R = τ/dt, which ours never is
        "Delay": (nir.Delay(0.001 * one), shape),
        "Scale": (nir.Scale(one), shape),
    }
    found = {"snnTorch": [], "Norse": []}
    for name, (node, size) in nodes.items():
        for peer in found:
            try:
                graph = nir.NIRGraph(
                    {"input": nir.Input(size), "n": node, "output": nir.Output({"output": node.output_type["output"]})},
                    [("input", "n"), ("n", "output")],
                )
                x = torch.zeros(1, 2, *map(int, size["input"]))
                with contextlib.redirect_stdout(io.StringIO()):
                    out = run_norse(graph, x, 0.001) if peer == "Norse" else run_snntorch(graph, x)
                if tuple(out.shape[2:]) == tuple(map(int, node.output_type["output"])):
                    found[peer].append(name)
            except Exception:
                continue
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = {"graphs": graphs(folder), "readers": readers(), "weights": weights()}
    (folder / "results.json").write_text(json.dumps(results))
