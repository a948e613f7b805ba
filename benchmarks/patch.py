"""Activation patching of the residual stream, each layer and token, beside TransformerLens and nnsight.

    python benchmarks/patch.py [--json] [--rounds 5] [--threads 2] [--peers .venv-language-peers]

Pairs of prompts differ in one token. For every layer and token, the corrupted run gets that place of the stream from
the clean run, and a difference of two logits is read. TransformerLens runs one pass per place, nnsight one per layer
with a part of the batch per token, we as many places as fit into 256 rows. `one pass per place` is the loop with a
plain hook that a user would write by hand. The floor is the same number of rows through the whole model; ours goes
below it, as the blocks before a patched place are not run again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from _language_models import Size, load_model, prompts, save_model
from _language_rounds import arguments, compare

import plexus as px
from plexus.explain.circuits import activation_patching

SIZES = (Size(4, 128, 8, 16, 8), Size(6, 384, 8, 24, 8))


def contenders(model: torch.nn.Module, size: Size):
    """What runs in this process: name to function."""
    clean, corrupted = prompts(size)
    blocks = [model.get_submodule(f"model.layers.{layer}") for layer in range(size.layers)]
    at = [px.units.Site(f"model.layers.{layer}", "b t u", at="input") for layer in range(size.layers)]

    def read(output, pair: torch.Tensor) -> torch.Tensor:
        return output.logits[:, -1, 10] - output.logits[:, -1, 11]

    def plexus() -> torch.Tensor:
        # without our control of wrong pairs, which the peers do not run
        found = activation_patching(model, clean, corrupted, at, read, control=False)
        return (found.base + found.effects).mean(1).reshape(size.layers, size.tokens)

    def one_pass_per_place() -> torch.Tensor:
        stream: list[torch.Tensor] = []
        cells = torch.empty(size.layers, size.tokens)
        with torch.no_grad():
            handles = [block.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0])) for block in blocks]
            model(clean)
            for handle in handles:
                handle.remove()
            for layer, block in enumerate(blocks):
                for token in range(size.tokens):

                    def patch(_, inputs, layer=layer, token=token):
                        values = inputs[0].clone()
                        values[:, token] = stream[layer][:, token]
                        return (values, *inputs[1:])

                    handle = block.register_forward_pre_hook(patch)
                    cells[layer, token] = read(model(corrupted), clean[:, 0]).mean()
                    handle.remove()
        return cells

    def forward_alone() -> None:
        with torch.no_grad():
            for _ in range(size.layers * size.tokens * size.prompts // 256):
                model(corrupted.repeat(256 // size.prompts, 1))

    return {"plexus": plexus, "one pass per place": one_pass_per_place, "forward alone": forward_alone}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout with `--json`."""
    options = arguments(__doc__, argv)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), size)
            here = contenders(load_model(Path(folder)), size)
            compare("patch", size, here, Path(folder), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
