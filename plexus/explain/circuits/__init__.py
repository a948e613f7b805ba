"""Circuits: which places in a model carry a behaviour, and how they act on each other."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
