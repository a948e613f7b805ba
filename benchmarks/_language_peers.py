"""Runs in the peers' environment: `name task size…` in, a JSON line with the time out, and the numbers in a file."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from _language_models import Size, load_model, logit_difference, prompts
from _timing import peak_memory, settled


class TransformerLens:
    """Its bridge over the Hugging Face model, which it leaves as it is."""

    def __init__(self, folder: Path) -> None:
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        model = load_model(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = TransformerBridge.boot_transformers(
                str(folder), hf_model=model, tokenizer=tokenizer, device="cpu"
            )

    def record(self, size: Size) -> torch.Tensor:
        names = [f"blocks.{layer}.mlp.hook_post" for layer in range(size.layers)]
        found = []
        with torch.no_grad():
            for batch in prompts(size)[0].split(size.batch):
                _, cache = self.model.run_with_cache(batch, names_filter=names)
                found.append(torch.stack([cache[name][:, -1] for name in names]))
        return torch.cat(found, dim=1)

    def patch(self, size: Size) -> torch.Tensor:
        from transformer_lens.patching import get_act_patch_resid_pre

        clean, corrupted = prompts(size)
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            _, cache = self.model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_resid_pre"))
            return get_act_patch_resid_pre(self.model, corrupted, cache, logit_difference)


class NNsight:
    """One trace per batch; patches of one layer are the invokes of one trace, which it runs as one batch."""

    def __init__(self, folder: Path) -> None:
        import nnsight
        from transformers import AutoTokenizer

        self.model = nnsight.LanguageModel(load_model(folder), tokenizer=AutoTokenizer.from_pretrained(folder))

    def record(self, size: Size) -> torch.Tensor:
        found = []
        with torch.no_grad():
            for batch in prompts(size)[0].split(size.batch):
                kept = []
                with self.model.trace(batch):
                    for layer in self.model.model.layers:
                        kept.append(layer.mlp.down_proj.input[:, -1].save())  # noqa: PERF401 - it traces statements
                found.append(torch.stack(kept))
        return torch.cat(found, dim=1)

    def patch(self, size: Size) -> torch.Tensor:
        clean, corrupted = prompts(size)
        cells = torch.empty(size.layers, size.tokens)
        with torch.no_grad():
            stream = []
            with self.model.trace(clean):
                for layer in self.model.model.layers:
                    stream.append(layer.input.save())  # noqa: PERF401
            for layer in range(size.layers):
                values = []
                with self.model.trace() as tracer:
                    for token in range(size.tokens):
                        with tracer.invoke(corrupted):
                            self.model.model.layers[layer].input[:, token] = stream[layer][:, token]
                            values.append(self.model.lm_head.output[:, -1, 10:12].mean(0).save())
                cells[layer] = torch.stack([pair[0] - pair[1] for pair in values])
        return cells


PEERS = {"transformerlens": TransformerLens, "nnsight": NNsight}


def answer(peer: TransformerLens | NNsight, task: str, size: Size, path: Path, memory: dict[str, float | None]):
    """Time of one call; the first saves its numbers at `path`, and its peak memory is remembered under that name."""

    def call() -> torch.Tensor:
        return getattr(peer, task)(size)

    if path.name not in memory:
        torch.save(call(), path)
        memory[path.name] = peak_memory(call)
    return {"ms": settled(call), "peak_mb": memory[path.name]}


def main() -> None:
    threads, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(threads)
    ready: dict[str, TransformerLens | NNsight] = {}
    memory: dict[str, float | None] = {}
    for line in sys.stdin:
        name, task, *numbers = line.rstrip("\n").split("\t")
        try:
            if name not in ready:
                ready[name] = PEERS[name](folder)
            result = answer(ready[name], task, Size(*map(int, numbers)), folder / f"{name}-{task}.pt", memory)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
