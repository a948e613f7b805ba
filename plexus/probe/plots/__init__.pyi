from ._plots import histogram as histogram
from ._plots import movie as movie
from ._plots import raster as raster
from ._plots import traces as traces
