"""Connections as masks: wirings, training that prunes and regrows, and sparse execution."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
