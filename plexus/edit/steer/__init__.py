"""Steer along directions: add, take out, scale, turn in a plane, choose among several; write it where it is needed."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
