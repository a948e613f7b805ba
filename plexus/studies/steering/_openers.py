"""Two ways to open refused requests that must work: positive controls of what the other ways to steer are judged by.

    barred     logit of every word that begins a refusal less 100        nothing refused, whatever the model then says
    learned    h + v_k at the sites, v = argmin Σ -log p(recipe | request)        by gradient, on calibration requests

The first has its effect by construction, and shows that a refusal that is taken away would be seen. The second acts
where the rotations act, on the same kind of values and at all tokens, with vectors that were taught the very effect:
it shows whether anything at these sites can open what is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plexus.edit import Edit, steer
from plexus.studies.steering._refusals import ALLOWED, RESTRICTED, Requests
from plexus.units import Site

RATE = 0.05
"""Of Adam; the values have lengths of about seven."""


def barred(requests: Requests) -> Edit:
    """The words that begin a refusal are never said."""
    words = torch.zeros(len(requests.tokenizer))
    words[requests.openings] = 1.0
    return steer.add({Site("lm_head"): words}, -100 * float(words.norm()))


def learned(requests: Requests, sites: Sequence[Site], steps: int) -> Edit:
    """One vector per site that makes the model say the recipes of the calibration requests, of both classes."""
    model = requests.model
    parts = [requests.sets[f"calibration {name}"] for name in (RESTRICTED, ALLOWED)]
    size = max(part.ids.shape[1] for part in parts)
    ids = torch.cat([torch.nn.functional.pad(part.ids, (0, size - part.ids.shape[1])) for part in parts])
    first, length = (torch.cat([getattr(part, name) for part in parts])[:, None] for name in ("first", "length"))
    place = torch.arange(size - 1)
    answer = (place >= first - 1) & (place < length - 1)
    vectors = [torch.zeros_like(requests.plane.b1, requires_grad=True) for _ in sites]
    optimizer = torch.optim.Adam(vectors, lr=RATE)
    hooks = [
        model.get_submodule(site.path).register_forward_hook(lambda _module, _given, out, v=vector: out + v)
        for site, vector in zip(sites, vectors, strict=True)
    ]
    try:
        for _ in range(steps):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits[answer].float(), ids[:, 1:][answer])
            for vector, slope in zip(vectors, torch.autograd.grad(loss, vectors), strict=True):
                vector.grad = slope
            optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()
    found = {site: vector.detach() for site, vector in zip(sites, vectors, strict=True)}
    return steer.add(found, {site: float(vector.norm()) for site, vector in found.items()})
