"""BUILD: neurons, reservoirs, recurrent rate networks, small models, encoders, and the container that threads state."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
