from ._lif import LIFState as LIFState
from ._lif import LIF as LIF
from ._recurrent_lif import RecurrentLIF as RecurrentLIF
from ._elm import ELM as ELM
from ._elm import ELMState as ELMState
from ._elm_layer import ELMLayer as ELMLayer
from ._elm_layer import ELMLayerState as ELMLayerState
