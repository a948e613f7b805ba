"""Sparse autoencoders: trained on the units of any model, measured, read from and written to SAELens' format."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
