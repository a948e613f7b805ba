from ._fisher import diagonal_fisher as diagonal_fisher
from ._importances import Importances as Importances
