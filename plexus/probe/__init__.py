"""WATCH: record units, score them, check a network's health, measure its dynamics and tuning."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
