from ._homeostatic_threshold import HomeostaticThreshold as HomeostaticThreshold
from ._plastic import Plastic as Plastic
from ._plastic import PlasticState as PlasticState
from ._rule import Rule as Rule
from ._rule import Signals as Signals
from ._stdp import PairSTDP as PairSTDP
from ._stdp import PairTraces as PairTraces
from ._tempotron import Tempotron as Tempotron
