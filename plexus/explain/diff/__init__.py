"""What training changed: two checkpoints of one model, layer by layer and unit by unit."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
