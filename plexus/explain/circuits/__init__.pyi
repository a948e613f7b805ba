from ._attention import OpenedAttention as OpenedAttention
from ._attention import open_attention as open_attention
from ._attention import pattern_of as pattern_of
