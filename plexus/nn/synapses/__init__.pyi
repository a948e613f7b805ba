from ._delayed import DelayedConv2d as DelayedConv2d
from ._delayed import DelayedLinear as DelayedLinear
from ._delayed import DelayState as DelayState
from ._delay_learning import DelayAnneal as DelayAnneal
from ._delay_learning import delay_parameters as delay_parameters
from ._delay_learning import weight_parameters as weight_parameters
