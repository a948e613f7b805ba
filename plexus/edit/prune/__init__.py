"""PRUNE: remove units, channels and attention heads for good, so that the model is smaller and does the same without."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
