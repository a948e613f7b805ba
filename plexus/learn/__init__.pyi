from . import unlearning as unlearning
from . import homeostasis as homeostasis
from . import readout as readout
from . import objectives as objectives
from . import plasticity as plasticity
