"""One step of all units as Numba source, for loops that do something else between the steps.

A recurrent layer takes a matrix product between two steps, so time cannot lie inside a chunk of columns. Here the
scratch of all chunks outlives the step: `scratch[chunk]` holds state and numbers of a chunk's columns, laid out as in
`_source`, for as long as the loop takes.
"""

from __future__ import annotations

from plexus.kernels._frame import Dynamics, Options
from plexus.kernels._source import Loops, head, indent

__all__ = ["steps_source"]


def steps_source(dynamics: Dynamics, o: Options, dtype: str, uniform: bool, learn: bool) -> str:
    """The module that holds this model's single steps, as text."""
    return head(o, dtype) + _Steps(dynamics, o, uniform, learn).text()


class _Steps(Loops):
    """Writes `advance`, for the way back `again`, which keeps what was before a step, and its adjoint `retreat`."""

    def text(self) -> str:
        text = f"SECTIONS = {tuple(self.sections)!r}\n" + self.forward_row() + self.backward_rows()
        text += self._function("advance", "out, ", self._row("_forward_row", "out"))
        text += self._function("again", "K, ", self._row("_again_row", keep=True))
        gradients = self._row("_back_row", "grad", *(f"dx_{n}" for n in self.d.inputs), keep=True)
        return text + self._function("retreat", f"grad, {self.names('dx')}, K, ", gradients)

    def _row(self, function: str, *others: str, keep: bool = False) -> str:
        arrays = [*(f"x_{n}" for n in self.d.inputs), *others]
        rows = "".join(f"{name}[first:first + n], " for name in arrays)
        kept = "".join(f"K[{k}, first:first + n], " for k in range(len(self.carried))) if keep else ""
        return f"{function}({rows}S, n, {kept}{self.scalars})"

    def _function(self, name: str, arguments: str, row: str) -> str:
        numbers = "".join(f"p_{n}, " for n in self.used if self.uniform) + self.numbers
        return f"""
@njit(nogil=True, error_model='numpy', cache=True)
def {name}({self.names("x")}, {arguments}{numbers}, scratch, total, start, stop):
{indent(self.head(), 4)}
    for chunk in range(start, stop):
        first = chunk * C
        n = min(C, total - first)
        S = scratch[chunk]
        {row}
"""
