from ._files import UnwritableError as UnwritableError
from ._neurons import Neurons as Neurons
from ._neurons import fingerprint as fingerprint
from ._recording import Recording as Recording
from ._rows import Table as Table
from ._scores import Scores as Scores
from ._scores import Unit as Unit
