"""Exchange with other tools: NIR graphs out and in, weights of snnTorch and SpikingJelly, and who can take what."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
