"""The atlas of a model: every unit, what it detects, what it does, and where to see it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
