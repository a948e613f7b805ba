"""Linear readouts in the manner of scikit-learn: ridge with a path of penalties, recursive least squares."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
