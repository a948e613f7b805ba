from ._entropy_rate import entropy_rate_bound as entropy_rate_bound
from ._lempel_ziv import lz_complexity as lz_complexity
