from . import controls as controls
from ._compare import Comparison as Comparison
from ._compare import Effect as Effect
from ._compare import compare as compare
from . import atlas as atlas
from ._sweep import Cell as Cell
from ._sweep import sweep as sweep
from ._sweep import unit_effects as unit_effects
