"""Local learning: rules that change a weight from what its two neurons do, and the loop around them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
