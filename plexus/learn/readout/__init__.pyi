from ._estimator import Readout as Readout
from ._recursive import RecursiveReadout as RecursiveReadout
from ._ridge import LAMBDAS as LAMBDAS
from ._ridge import RidgeReadout as RidgeReadout
from ._complexity import LZCClassifier as LZCClassifier
