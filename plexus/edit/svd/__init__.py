"""Singular directions of a weight matrix: which carry a concept, and the matrix without them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
