from ._distances import van_rossum_distance as van_rossum_distance
from ._distances import victor_purpura_distance as victor_purpura_distance
from ._statistics import coefficient_of_variation as coefficient_of_variation
from ._statistics import count_correlation as count_correlation
from ._statistics import fano_factor as fano_factor
from ._statistics import firing_rate as firing_rate
from ._statistics import interspike_intervals as interspike_intervals
from ._statistics import spike_times as spike_times
