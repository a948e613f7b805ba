"""PRUNE: remove units, channels and attention heads for good: the model does as if they were silent, and is smaller."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
