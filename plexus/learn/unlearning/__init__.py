"""Forgetting training data: selective synaptic dampening, its rivals, and an audit of what is left."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
