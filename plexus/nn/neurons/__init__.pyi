from ._lif import LIFState as LIFState
from ._lif import LIF as LIF
from ._recurrent_lif import RecurrentLIF as RecurrentLIF
from ._meta import MetaNeuron as MetaNeuron
from ._meta import MetaState as MetaState
from ._intrinsic import freeze_intrinsic as freeze_intrinsic
from ._intrinsic import intrinsic_parameters as intrinsic_parameters
from ._intrinsic import synaptic_parameters as synaptic_parameters
