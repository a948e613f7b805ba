from ._lif import LIFState as LIFState
from ._lif import lif as lif
from ._operator import BACKENDS as BACKENDS
from ._operator import Backend as Backend
from ._surrogate import SURROGATES as SURROGATES
from ._surrogate import Surrogate as Surrogate
from ._astrocyte import AstrocyteLoop as AstrocyteLoop
from ._astrocyte import astrocyte_loop as astrocyte_loop
from ._decaying_sum import decaying_sum as decaying_sum

from ._delays import delayed as delayed
from ._delays import delayed_taps as delayed_taps
from ._products import SparseWeight as SparseWeight
