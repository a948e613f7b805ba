from ._verbs import ablate as ablate
from ._verbs import add as add
from ._verbs import plane as plane
from ._verbs import rotate as rotate
from ._verbs import scale as scale
