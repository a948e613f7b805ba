"""Objectives: losses on spikes and potentials over time, and bounds on how much a network fires."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
