"""Information in spike trains: complexity of binary sequences and bounds of their entropy rate."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
