from ._fixed_point import FixedPoint as FixedPoint
from ._fixed_point import fixed_point as fixed_point
from ._recurrent_rate import RateState as RateState
from ._recurrent_rate import RecurrentRate as RecurrentRate
from ._recurrent_rate import spectral_abscissa as spectral_abscissa
