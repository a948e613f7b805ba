from ._attacks import fgsm as fgsm
from ._attacks import pgd as pgd
