"""Small controlled texts in which a phenomenon exists by construction, for tiny language models to learn."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
