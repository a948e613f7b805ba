"""The shared currency: sites, recordings, scores, sets of neurons, and the one hook engine under all of them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
