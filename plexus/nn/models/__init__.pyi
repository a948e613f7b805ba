from ._char_transformer import CharTransformer as CharTransformer
from ._small_cnn import SmallCNN as SmallCNN
from ._astro_snn import AstroSNN as AstroSNN
from ._astro_snn_lm import AstroSNNCache as AstroSNNCache
from ._astro_snn_lm import AstroSNNConfig as AstroSNNConfig
from ._astro_snn_lm import AstroSNNForCausalLM as AstroSNNForCausalLM
from ._g2g_mlp import G2GMLP as G2GMLP
from ._g2g_mlp import existing_weights as existing_weights
