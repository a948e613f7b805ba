from ._images import Labelled as Labelled
from ._images import data_folder as data_folder
from ._images import digits as digits
from ._images import idx_images as idx_images
