"""Gap junctions: electrical synapses through which current flows from the higher potential to the lower.

    I_i = Σ_j g_ij (v_j - v_i),      g_ij = g_ji >= 0

What one side loses the other gains, so the currents sum to zero. Source: Dayan & Abbott 2001, section 5.8.
Conductances in the unit in which the neuron takes its current per unit of potential.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plexus.errors import RangeError, ShapeError
from plexus.nn._places import place_of

__all__ = ["GapJunctions"]


class GapJunctions(nn.Module):
    """`current = GapJunctions(mask, 0.1)(v)`; v `[…, unit]`, the potentials of the same step.

    Args:
        mask: pairs that are coupled, bool `[unit, unit]`, symmetric; its diagonal does not matter.
        conductance: g, a number or one for each pair `[unit, unit]`, symmetric.
        learn: whether conductances are learnt, one per coupled pair; they stay positive and symmetric.

    Raises:
        ShapeError: mask or potentials do not fit. RangeError: mask or conductances are not symmetric, or not positive.

    Examples:
        >>> pair = GapJunctions(torch.ones(2, 2, dtype=torch.bool), 0.5)
        >>> pair(torch.tensor([1.0, 3.0]))
        tensor([ 1., -1.])
    """

    axes = "b ... u"
    mask: Tensor
    first: Tensor
    second: Tensor
    log_conductance: Tensor

    def __init__(self, mask: Tensor, conductance: float | Tensor = 0.1, *, learn: bool = False) -> None:
        super().__init__()
        if mask.dim() != 2 or mask.shape[0] != mask.shape[1]:
            raise ShapeError("couplings are a square matrix", given=tuple(mask.shape), expected="[unit, unit]")
        mask = mask.to(place_of(mask, conductance))
        strength = torch.as_tensor(conductance, dtype=torch.get_default_dtype(), device=mask.device)
        if strength.shape not in ((), tuple(mask.shape)):
            raise ShapeError("the conductances do not fit", given=tuple(strength.shape), expected=tuple(mask.shape))
        coupled = mask.detach().bool().clone().fill_diagonal_(False)
        strength = strength.detach().expand(mask.shape)
        if not torch.equal(coupled, coupled.T) or not torch.equal(strength * coupled, (strength * coupled).T):
            raise RangeError("a gap junction conducts both ways", expected="a symmetric mask and conductances")
        if not bool((strength[coupled] > 0).all()):
            raise RangeError("a conductance is not positive", given=conductance, expected="> 0 where coupled")
        self.units = mask.shape[0]
        self.register_buffer("mask", coupled)
        first, second = torch.triu(coupled).nonzero(as_tuple=True)
        self.register_buffer("first", first)
        self.register_buffer("second", second)
        log_conductance = strength[first, second].log()
        if learn:
            self.log_conductance = nn.Parameter(log_conductance)
        else:
            self.register_buffer("log_conductance", log_conductance)

    @property
    def conductance(self) -> Tensor:
        """Conductances `[unit, unit]`, zero where nothing is coupled."""
        half = self.log_conductance.new_zeros(self.units, self.units)
        half = half.index_put((self.first, self.second), self.log_conductance.exp())
        return half + half.T

    def forward(self, v: Tensor) -> Tensor:
        """Currents into the units."""
        if v.shape[-1] != self.units:
            raise ShapeError("the potentials do not fit", given=tuple(v.shape), expected=f"[…, {self.units}]")
        g = self.conductance.to(v.dtype)
        return v @ g - v * g.sum(0)
