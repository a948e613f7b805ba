from ._directions import Directions as Directions
from ._directions import directions as directions
from ._held import untie as untie
from ._scores import direction_scores as direction_scores
from ._weight_edit import WeightEdit as WeightEdit
from ._weight_edit import eigenshift as eigenshift
from ._weight_edit import scale as scale
