"""Recording the hidden units of every MLP of a language model beside TransformerLens and nnsight.

    python benchmarks/record.py [--json] [--rounds 7] [--threads 2] [--peers .venv-language-peers]

All read the same Llama of random weights and the same prompts, and keep the units of the last token of each prompt. The
floor is the forward passes alone; `stop_early` ends a pass after the last layer's MLP, as nnsight does unasked; `plain
hooks` is what a user would write by hand: a forward hook per layer. Each round times every contender in turn. The
numbers must be equal: `difference` is the largest one to ours.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from _language_models import Size, load_model, prompts, save_model
from _language_rounds import arguments, compare

import plexus as px

SIZES = (Size(4, 128, 256, 16, 32), Size(6, 384, 128, 64, 32))


def contenders(model: torch.nn.Module, size: Size):
    """What runs in this process: name to function."""
    batches = prompts(size)[0].split(size.batch)
    at = px.sites.mlp(model)

    def plexus() -> torch.Tensor:
        record = px.probe.record(model, batches, at=at, pool="last")
        return torch.stack([record[site] for site in at])

    def stopping_early() -> torch.Tensor:
        record = px.probe.record(model, batches, at=at, pool="last", stop_early=True)
        return torch.stack([record[site] for site in at])

    def plain_hooks() -> torch.Tensor:
        found: list[list[torch.Tensor]] = [[] for _ in at]
        handles = [
            model.get_submodule(site.path).register_forward_pre_hook(
                lambda _, inputs, kept=kept: kept.append(inputs[0][:, -1].clone())
            )
            for site, kept in zip(at, found, strict=True)
        ]
        with torch.no_grad():
            for batch in batches:
                model(batch)
        for handle in handles:
            handle.remove()
        return torch.stack([torch.cat(kept) for kept in found])

    def forward_alone() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    return {
        "plexus": plexus,
        "plexus, stop_early": stopping_early,
        "plain hooks": plain_hooks,
        "forward alone": forward_alone,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; JSON lines on stdout with `--json`."""
    options = arguments(__doc__, argv)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), size)
            here = contenders(load_model(Path(folder)), size)
            compare("record", size, here, Path(folder), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
