from ._lif import LIFState as LIFState
from ._lif import lif as lif
from ._operator import BACKENDS as BACKENDS
from ._operator import Backend as Backend
from ._surrogate import SURROGATES as SURROGATES
from ._surrogate import Surrogate as Surrogate

from ._delays import delayed as delayed
from ._delays import delayed_taps as delayed_taps
from ._products import SparseWeight as SparseWeight
