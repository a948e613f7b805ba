"""Figures of activity: rasters, membrane traces, histograms of weights and delays, movies. They need plotly (`lab`)."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
