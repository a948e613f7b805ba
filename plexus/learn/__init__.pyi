from . import unlearning as unlearning
