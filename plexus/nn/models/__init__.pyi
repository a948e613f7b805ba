from ._char_transformer import CharTransformer as CharTransformer
from ._small_cnn import SmallCNN as SmallCNN
