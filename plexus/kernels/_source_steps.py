"""One step of all units as Numba source, for loops that do something else between the steps.

A recurrent layer takes a matrix product between two steps, so time cannot lie inside a chunk of columns. Here the
scratch of all chunks outlives the step: `scratch[chunk]` holds state and numbers of a chunk's columns, laid out as in
`_source`, from `begin` to `finish` and from `turn` to `arrive`.
"""

from __future__ import annotations

from plexus.kernels._frame import Dynamics, Options
from plexus.kernels._source import Loops, head, indent

__all__ = ["steps_source"]


def steps_source(dynamics: Dynamics, o: Options, dtype: str, uniform: bool, learn: bool) -> str:
    """The module that holds this model's single steps, as text."""
    return head(o, dtype) + _Steps(dynamics, o, uniform, learn).text()


class _Steps(Loops):
    """Writes `begin`, `advance`, `finish`, and for the way back `again`, `turn`, `retreat`, `arrive`.

    `again` is `advance` that keeps what was before the step; `retreat` is the adjoint of a step.
    """

    def text(self) -> str:
        text = f"SECTIONS = {len(self.sections)}\n" + self.forward_row() + self.backward_rows()
        text += self._function("begin", f"units, {self.values}", self.load())
        text += self._function("advance", f"{self.names('x')}, out, {self._numbers}", self._row("_forward_row", "out"))
        ends = [(f"f_{n}", n) for n in self.carried]
        text += self._function("finish", self._listed(ends), self._copied(ends, out=True))
        text += self._function("again", f"{self.names('x')}, K, {self._numbers}", self._row("_again_row", keep=True))
        starts = [(f"i_{s}", f"d_{s}") for s in self.real]
        zero = "".join(f"    {self.at(f'g_{p}')} = _f(0.0)\n" for p in self.learnt)
        text += self._function("turn", self._listed(starts), self._copied(starts, out=False) + zero)
        given = f"{self.names('x')}, grad, {self.names('dx')}, K, {self._numbers}"
        back = self._row("_back_row", "grad", *(f"dx_{n}" for n in self.d.inputs), keep=True)
        text += self._function("retreat", given, back)
        found = [*((f"o_{s}", f"d_{s}") for s in self.real), *((f"o_{p}", f"g_{p}") for p in self.learnt)]
        return text + self._function("arrive", self._listed(found), self._copied(found, out=True))

    @property
    def _numbers(self) -> str:
        """What uniform numbers and constants come from."""
        return "".join(f"p_{n}, " for n in self.used if self.uniform) + self.numbers + ", "

    def _listed(self, pairs: list[tuple[str, str]]) -> str:
        return "".join(f"{array}, " for array, _ in pairs)

    def _copied(self, pairs: list[tuple[str, str]], *, out: bool) -> str:
        """A loop between arrays of all columns and sections of the scratch."""
        text = "for j in range(n):\n    pass\n"
        for array, section in pairs:
            here, there = f"{array}[first + j]", self.at(section)
            text += f"    {here} = {there}\n" if out else f"    {there} = {here}\n"
        return text

    def _row(self, function: str, *others: str, keep: bool = False) -> str:
        arrays = [*(f"x_{n}" for n in self.d.inputs), *others]
        rows = "".join(f"{name}[first:first + n], " for name in arrays)
        kept = "".join(f"K[{k}, first:first + n], " for k in range(len(self.carried))) if keep else ""
        return f"{function}({rows}S, n, {kept}{self.scalars})"

    def _function(self, name: str, arguments: str, body: str) -> str:
        top = self.head() if self.numbers in arguments else ""
        return f"""
@njit(nogil=True, error_model='numpy', cache=True)
def {name}({arguments}scratch, total, start, stop):
{indent(top, 4)}
    for chunk in range(start, stop):
        first = chunk * C
        n = min(C, total - first)
        S = scratch[chunk]
{indent(body, 8)}
"""
