from ._encoders import delta as delta
from ._encoders import direct as direct
from ._encoders import latency as latency
from ._encoders import poisson as poisson
from ._encoders import rate as rate
from ._cochlea import Cochlea as Cochlea
from ._cochlea import CochleaState as CochleaState
from ._cochlea import erb_centres as erb_centres
