from ._early_exit import EarlyExit as EarlyExit
from ._early_exit import Exited as Exited
from ._early_exit import OverLayers as OverLayers
from ._early_exit import Stepwise as Stepwise
