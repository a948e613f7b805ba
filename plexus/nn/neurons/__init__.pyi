from ._lif import LIFState as LIFState
from ._lif import LIF as LIF
from ._recurrent_lif import RecurrentLIF as RecurrentLIF
from ._recurrent import Recurrent as Recurrent

# the other neurons
from ._adex import AdEx as AdEx
from ._adex import AdExState as AdExState
from ._alif import ALIF as ALIF
from ._alif import ALIFState as ALIFState
from ._coba import COBA as COBA
from ._coba import COBAState as COBAState
from ._cuba import CUBA as CUBA
from ._cuba import CUBAState as CUBAState
from ._dendrite import Dendrite as Dendrite
from ._dendrite import DendriteState as DendriteState
from ._if import IF as IF
from ._izhikevich import Izhikevich as Izhikevich
from ._izhikevich import IzhikevichState as IzhikevichState
from ._leaky_integrator import LeakyIntegrator as LeakyIntegrator
from ._leaky_integrator import LeakyIntegratorState as LeakyIntegratorState
from ._plif import PLIF as PLIF
from ._resonate import BalancedResonate as BalancedResonate
from ._resonate import BalancedResonateState as BalancedResonateState
from ._resonate import ResonateAndFire as ResonateAndFire
from ._resonate import ResonateState as ResonateState
from ._two_compartment import TwoCompartment as TwoCompartment
from ._two_compartment import TwoCompartmentState as TwoCompartmentState
