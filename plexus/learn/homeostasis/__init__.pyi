from ._gain_attach import GainAttachment as GainAttachment
from ._gain_attach import attach_gain_control as attach_gain_control
from ._gain_control import GainControl as GainControl
from ._gain_control import linear_reader as linear_reader
from ._inhibitory import Adaptation as Adaptation
from ._inhibitory import ChaoticReservoirError as ChaoticReservoirError
from ._inhibitory import ChaoticReservoirWarning as ChaoticReservoirWarning
from ._inhibitory import InhibitoryHomeostasis as InhibitoryHomeostasis
