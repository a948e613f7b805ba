"""Plexus: adaptive neurons for PyTorch — build them, teach them, watch them, edit them, and prove it.

The rooms load when first used:

    units    the shared currency: Site, Recording, Scores, Neurons
    data     datasets, tasks and streams
    kernels  fused time loops beside their eager references
    nn       BUILD    neurons, reservoirs, encodings, models
    probe    WATCH    record, score, check the health of a network
    edit     EDIT     scale, clamp, replace, add, patch, bake
    explain  EXPLAIN  what an edit shows, beside its matched random control
    learn    TEACH    unlearning, homeostasis, readouts
    lab      PROVE    studies, the runner, verdicts, the report
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
