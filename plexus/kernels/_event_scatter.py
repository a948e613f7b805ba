"""Event-driven synapses: every event visits the synapses of its source, each adds its weight later and elsewhere.

    out[way, i_r + δ_s, c_s, y_r - v_s, x_r - u_s] += w_s      for every event r and every synapse s of its source

i_r is the step of the event, (y, x)_r its position, δ_s a delay in steps, (v, u)_s an offset. Work is the number of
events times the number of synapses per source; absent synapses cost nothing. Events need no order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from plexus.errors import DeviceError

__all__ = ["scatter_events"]


def scatter_events(events: Tensor, synapses: Tensor, weight: Tensor, starts: Tensor, out: Tensor) -> int:
    """Add what the events bring to `out` `[time, target, y, x]`, in place; returns the number of synaptic operations.

    Args:
        events: `[event, 4]`, int64: step, source, y, x.
        synapses: `[synapse, 4]`, int64: target, delay in steps, v, u; those of a source stand together.
        weight: `[synapse]`, of the dtype of `out`.
        starts: `[source + 1]`, int64: where the synapses of each source begin.
        out: contiguous, on the CPU; the others are moved there.

    Raises:
        DeviceError: out lies elsewhere.

    Examples:
        >>> import torch
        >>> out = torch.zeros(4, 1, 1, 1)
        >>> events, synapses = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 2, 0, 0]])
        >>> scatter_events(events, synapses, torch.tensor([0.5]), torch.tensor([0, 1]), out), out.flatten().tolist()
        (1, [0.0, 0.0, 0.5, 0.0])
    """
    if out.device.type != "cpu":
        raise DeviceError("events are scattered in main memory", given=out.device, expected="cpu", mend="out.cpu()")
    arrays = (part.detach().cpu().contiguous().numpy() for part in (events, synapses, weight, starts))
    return int(_loop()(*arrays, out.detach().numpy()))


def _scatter(events, synapses, weight, starts, out):  # type: ignore[no-untyped-def]
    operations = 0
    steps, _, height, width = out.shape
    for r in range(events.shape[0]):
        i, source, y, x = events[r, 0], events[r, 1], events[r, 2], events[r, 3]
        for s in range(starts[source], starts[source + 1]):
            t, to_y, to_x = i + synapses[s, 1], y - synapses[s, 2], x - synapses[s, 3]
            if 0 <= t < steps and 0 <= to_y < height and 0 <= to_x < width:
                out[t, synapses[s, 0], to_y, to_x] += weight[s]
                operations += 1
    return operations


@cache
def _loop() -> Any:
    import numba

    return numba.njit(cache=True)(_scatter)
