from ._choose import equal_width as equal_width
from ._choose import whole_groups as whole_groups
from ._remove import Removed as Removed
from ._remove import remove as remove
