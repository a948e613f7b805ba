from ._lif import LIFState as LIFState
from ._lif import LIF as LIF
from ._recurrent_lif import RecurrentLIF as RecurrentLIF
from ._recurrent import Recurrent as Recurrent
