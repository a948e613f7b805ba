from ._decoders import count as count
from ._decoders import first_spike as first_spike
from ._decoders import last as last
from ._decoders import mean as mean
from ._decoders import peak as peak
from ._decoders import rate as rate
from ._decoders import summed_softmax as summed_softmax
