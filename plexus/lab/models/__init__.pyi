from ._language import Gate as Gate
from ._language import LanguageModel as LanguageModel
from ._language import Quality as Quality
from ._language import train_language_model as train_language_model
from ._measure import Recall as Recall
from ._measure import recall as recall
