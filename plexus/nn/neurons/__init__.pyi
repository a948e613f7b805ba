from ._lif import LIFState as LIFState
from ._lif import LIF as LIF
from ._recurrent_lif import RecurrentLIF as RecurrentLIF
from ._signed_if import SignedIF as SignedIF
from ._signed_if import SignedIFState as SignedIFState
