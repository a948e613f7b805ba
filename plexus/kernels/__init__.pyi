from ._lif import LIFState as LIFState
from ._lif import lif as lif
from ._operator import BACKENDS as BACKENDS
from ._operator import Backend as Backend
from ._surrogate import SURROGATES as SURROGATES
from ._surrogate import Surrogate as Surrogate
from ._event_scatter import scatter_events as scatter_events
