from ._build import Atlas as Atlas
from ._build import build as build
from ._matter import Images as Images
from ._matter import Matter as Matter
from ._matter import Texts as Texts
from ._pages import write as write
