from . import controls as controls
from ._compare import Comparison as Comparison
from ._compare import Effect as Effect
from ._compare import compare as compare
from . import circuits as circuits
from . import diff as diff
from ._confidence import EntropyEffect as EntropyEffect
from ._confidence import entropy_effect as entropy_effect
