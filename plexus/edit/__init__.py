"""EDIT: scale, clamp, replace, add and patch units of a model; keep edits as files; bake them into weights."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
