from ._echo_state import EchoState as EchoState
from ._echo_state import EchoStateState as EchoStateState
from ._echo_state import dale_signs as dale_signs
from ._echo_state import scale_to_radius as scale_to_radius
