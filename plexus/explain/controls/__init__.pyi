from ._matched import matched_random as matched_random
from ._null import Null as Null
from ._null import null as null
