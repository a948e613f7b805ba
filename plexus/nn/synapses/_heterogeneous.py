"""Synapses with fixed whole delays, each its own: polychronous wiring.

    I_i[t] = Σ_j w_ij z_j[t - d_ij],       d_ij in 0 … max_delay steps

The state is the line in which spikes wait: the last max_delay inputs. Each spike is added where its synapses' delays
say; nothing is stored or computed for the delays between. Source: Izhikevich 2006. Delays in steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plexus.errors import DtypeError, RangeError, ShapeError
from plexus.kernels import delayed_taps
from plexus.nn._constraints import Constraint, DaleSigns, Masked
from plexus.nn._places import place_of
from plexus.nn.synapses._delay_kernel import DelayState
from plexus.nn.synapses._delayed import check_input, with_past
from plexus.nn.synapses._static import checked_signs, first_weights

__all__ = ["HeterogeneousDelays"]


class HeterogeneousDelays(nn.Module):
    """`current, state = HeterogeneousDelays(80, 64, max_delay=20)(spikes)`; spikes `[time, batch, n_in]`.

    Weights learn, delays do not (see `DelayedLinear`). In a loop of its own spikes a delay of d acts after d + 1 steps.

    Args:
        n_in, n_out: number of sources and of targets.
        max_delay: the largest delay in steps, at least 1.
        min_delay: the smallest, for delays that are drawn.
        delays: whole numbers `[n_out, n_in]`; None draws them evenly from min_delay … max_delay.
        mask: synapses that exist, bool `[n_out, n_in]`; others cost nothing.
        signs: +1 or -1 for each source (Dale's law), as for `Dense`.
        generator: source of delays and weights.

    Raises:
        RangeError: a delay is out of range. ShapeError: delays, mask or input do not fit. DtypeError: delays are no
            whole numbers.

    Examples:
        >>> layer = HeterogeneousDelays(2, 1, 3, delays=torch.tensor([[1, 3]]))
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> spikes = torch.tensor([[1.0, 1.0], [0, 0], [0, 0], [0, 0]]).unsqueeze(1)
        >>> layer(spikes)[0].flatten().tolist()
        [0.0, 1.0, 0.0, 1.0]
    """

    axes = "t b u"
    delays: Tensor
    mask: Tensor | None
    signs: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        max_delay: int,
        *,
        min_delay: int = 0,
        delays: Tensor | None = None,
        mask: Tensor | None = None,
        signs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_in < 1 or n_out < 1:
            raise ShapeError("a layer needs a source and a target", given=(n_in, n_out), expected="positive sizes")
        if max_delay < 1 or not 0 <= min_delay <= max_delay:
            raise RangeError(
                "no such delays", given=(min_delay, max_delay), expected="0 <= min_delay <= max_delay >= 1"
            )
        if delays is None:
            delays = torch.randint(min_delay, max_delay + 1, (n_out, n_in), generator=generator)
        for name, matrix in (("delays do", delays), ("mask does", mask)):
            if matrix is not None and matrix.shape != (n_out, n_in):
                raise ShapeError(f"the {name} not fit", given=tuple(matrix.shape), expected=(n_out, n_in))
        if delays.is_floating_point():
            raise DtypeError("delays are whole numbers of steps", given=delays.dtype, mend="delays.round().long()")
        if bool(((delays < 0) | (delays > max_delay)).any()):
            given = (int(delays.min()), int(delays.max()))
            raise RangeError("a delay is out of range", given=given, expected=f"0 … {max_delay} steps")
        self.n_in, self.n_out, self.max_delay = n_in, n_out, max_delay
        place = place_of(delays, mask, signs)
        self.register_buffer("delays", delays.detach().to(place).long().clone())
        self.register_buffer("mask", None if mask is None else mask.detach().to(place).bool().clone())
        self.register_buffer("signs", checked_signs(signs, n_in, place))
        fan_in = n_in if self.mask is None else self.mask.float().sum(1).mean().item()
        weight = first_weights((n_out, n_in), fan_in, self.signs, generator).to(place)
        self.weight = nn.Parameter(weight if self.mask is None else weight * self.mask)

    def constraints(self) -> dict[str, Constraint]:
        """What `plexus.nn.project_` keeps: signs of sources and synapses that do not exist."""
        signs = None if self.signs is None else DaleSigns(self.signs)
        if self.mask is not None:
            return {"weight": Masked(self.mask, signs)}
        return {} if signs is None else {"weight": signs}

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None) -> DelayState:
        """Silence before the first step."""
        return DelayState(self.weight.new_zeros(batch, self.max_delay, self.n_in, dtype=dtype or self.weight.dtype))

    def forward(self, x: Tensor, state: DelayState | None = None) -> tuple[Tensor, DelayState]:
        """Currents `[time, batch, n_out]`, and the last inputs."""
        check_input(x, self.weight, (self.n_in,))
        rows, after = with_past(x, state, self.initial_state(x.shape[1], dtype=x.dtype))
        weight = self.weight if self.mask is None else self.weight * self.mask
        return delayed_taps(rows, self.delays, weight.unsqueeze(0), self.max_delay), after

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"{self.n_in}, {self.n_out}, delays {int(self.delays.min())} … {int(self.delays.max())} of {self.max_delay}"
        )
