"""Synapses: weights with delays, signs, wiring and dynamics, as layers in front of any neuron; time first."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
