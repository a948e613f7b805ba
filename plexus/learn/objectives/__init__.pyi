from ._losses import cross_entropy_count as cross_entropy_count
from ._losses import cross_entropy_latency as cross_entropy_latency
from ._losses import cross_entropy_membrane as cross_entropy_membrane
from ._losses import cross_entropy_over_time as cross_entropy_over_time
from ._losses import spike_count_loss as spike_count_loss
from ._losses import van_rossum_loss as van_rossum_loss
from ._rates import firing_rate_bounds as firing_rate_bounds
