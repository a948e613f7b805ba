"""Fused loops as Numba source: a model's step and adjoint, specialised and written into loops over time and columns.

`_triton_source` writes the same step and adjoint into Triton kernels; what both need is here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from plexus.kernels._frame import Dynamics, Options
from plexus.kernels._surrogate import SURROGATES

__all__ = ["CHUNK", "Loops", "Specialise", "head", "indent", "source", "spikes"]

CHUNK = 2048  # columns a chunk may have at most: its state and parameters stay in the first two levels of cache

_HEAD = """\
import math
import numpy as np
from numba import njit
_f = np.{dtype}
C = {chunk}

@njit(forceinline=True)
def where(c, a, b):
    return a if c else b

@njit(forceinline=True)
def clip(x, low, high):
    return low if x < low else (high if x > high else x)

@njit(forceinline=True)
def absolute(x):
    return abs(x)

@njit(forceinline=True)
def stop(x):
    return x

@njit(forceinline=True)
def exp(x):
    return math.exp(x)

@njit(forceinline=True)
def arctan(x):
    return math.atan(x)

@njit(forceinline=True)
def erf(x):
    return math.erf(x)
"""


class Specialise(ast.NodeTransformer):
    """Decide the options, type the literals, hand the spike its width and height, and keep names to themselves."""

    def __init__(self, o: Options, local: set[str]) -> None:
        self.o, self.local = o, local

    def visit_If(self, node: ast.If) -> list[ast.stmt]:
        chosen = eval(compile(ast.Expression(node.test), "<option>", "eval"), {"o": self.o})
        found: list[ast.stmt] = []
        for statement in node.body if chosen else node.orelse:
            new = self.visit(statement)
            found.extend(new if isinstance(new, list) else [new])
        return found

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(f"y_{node.id}", node.ctx) if node.id in self.local else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Call(ast.Name("_f", ast.Load()), [node], []) if isinstance(node.value, float) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("spike", "slope"):
            node.args += [ast.Name("c_width", ast.Load()), ast.Name("c_height", ast.Load())]
        return node


def _inlined(
    function: Callable[..., Any], o: Options, values: Sequence[str], specialise: type[Specialise] = Specialise
) -> tuple[str, list[str]]:
    """A model's function as statements for the inside of a loop, and the expressions that it returns."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    arguments = [a.arg for a in tree.args.args if a.arg not in ("spike", "slope", "o")]
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    tree = ast.fix_missing_locations(specialise(o, {*arguments, *assigned}).visit(tree))
    *body, last = tree.body
    assert isinstance(last, ast.Return)
    assert last.value is not None
    results = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    head = [f"y_{name} = {value}" for name, value in zip(arguments, values, strict=True)]
    return "\n".join([*head, *map(ast.unparse, body)]), [ast.unparse(r) for r in results]


def _helper(name: str, decorator: str, result: str, body: str = "") -> str:
    return f"\n{decorator}\ndef {name}(u, width, height):\n{indent(f'{body}{chr(10)}return {result}', 4)}\n"


def spikes(o: Options, decorator: str, specialise: type[Specialise] = Specialise) -> str:
    """The spike and its slope, as functions of the distance to threshold, the width and the height."""
    kind = SURROGATES[o.surrogate]
    body, (result,) = _inlined(kind.derivative, o, ["u", "width"], specialise)
    text = _helper("slope", decorator, f"height * ({result})", body)
    if o.smooth:
        body, (result,) = _inlined(kind.integral, o, ["u", "width"], specialise)
        return text + _helper("spike", decorator, f"_f(0.5) + height * ({result})", body)
    relation = ">=" if o.inclusive else ">"
    return text + _helper("spike", decorator, f"where(u {relation} _f(0.0), _f(1.0), _f(0.0))")


def head(o: Options, dtype: str) -> str:
    """What the loops of every model begin with: the dialect on scalars, the spike and its slope."""
    return _HEAD.format(dtype=dtype, chunk=CHUNK) + spikes(o, "@njit(forceinline=True, error_model='numpy')")


def source(dynamics: Dynamics, o: Options, dtype: str, uniform: bool, learn: bool) -> str:
    """The module that holds this model's fused loops, as text."""
    return head(o, dtype) + Loops(dynamics, o, uniform, learn).text()


class Loops:
    """Writes the loops.

    A chunk's numbers lie in one scratch array, section after section of C, so that the compiler sees that they do not
    overlap and uses vector instructions.
    """

    specialise = Specialise

    def __init__(self, dynamics: Dynamics, o: Options, uniform: bool, learn: bool) -> None:
        self.d, self.o, self.uniform = dynamics, o, uniform
        self.carried = dynamics.carried(o)
        self.used = dynamics.used(o)
        self.constants = [*dynamics.constants, "width", "height"]
        self.real = [s for s in dynamics.states if s in self.carried]
        self.learnt = [p for p in dynamics.parameters if p in self.used and learn]
        self.sections = [*self.carried, *(() if uniform else self.used)]
        self.sections += [*(f"d_{s}" for s in self.real), *(f"g_{p}" for p in self.learnt)]

    def at(self, name: str) -> str:
        k = self.sections.index(name)
        return f"S[{k} * C + j]" if k else "S[j]"

    def value(self, name: str) -> str:
        if name in self.sections:
            return self.at(name)
        return f"c_{name}" if name in self.used or name in self.constants else "_f(0.0)"

    def now(self, name: str) -> str:
        """An input at this step, or `grad`, the gradient of the output."""
        return f"{name}[j]"

    def before(self, name: str) -> str:
        """What was carried into the step whose adjoint is taken."""
        return f"k_{name}[j]"

    def step(self) -> tuple[str, dict[str, str], str]:
        """One step on what is carried: statements, the new values, and the output."""
        names = (*self.d.memory, *self.d.columns, *self.d.constants)
        given = [*(self.now(f"x_{n}") for n in self.d.inputs), *(self.value(n) for n in names)]
        body, (out, *new) = _inlined(self.d.step, self.o, given, self.specialise)
        return body, {n: e for n, e in zip(self.d.memory, new, strict=True) if n in self.carried}, out

    def adjoint(self) -> tuple[str, dict[str, str], dict[str, str], dict[str, str]]:
        """One step backwards: statements, and the gradients of the inputs, the states and the parameters."""
        values = [self.before(n) if n in self.carried else "_f(0.0)" for n in self.d.memory]
        values += [self.value(n) for n in (*self.d.columns, *self.d.constants)]
        incoming = [self.at(f"d_{s}") if s in self.real else "_f(0.0)" for s in self.d.states]
        given = [*(self.now(f"x_{n}") for n in self.d.inputs), *values, self.now("grad"), *incoming]
        body, found = _inlined(self.d.adjoint, self.o, given, self.specialise)
        rest = iter(found)
        d_inputs, d_states, d_parameters = (
            {name: next(rest) for name in names} for names in (self.d.inputs, self.d.states, self.d.parameters)
        )
        assert next(rest, None) is None, "an adjoint returns one gradient for each input, state and parameter"
        return body, d_inputs, d_states, d_parameters

    def load(self) -> str:
        text = "for j in range(n):\n    pass\n"
        text += "".join(f"    {self.at(n)} = m_{n}[first + j]\n" for n in self.carried)
        if not self.uniform:
            text += "unit = first % units\nfor j in range(n):\n"
            text += "".join(f"    {self.at(n)} = p_{n}[unit if p_{n}.size > 1 else 0]\n" for n in self.used)
            text += "    unit += 1\n    if unit == units:\n        unit = 0\n"
        return text

    def head(self) -> str:
        text = "".join(f"c_{n} = p_{n}[0]\n" for n in self.used) if self.uniform else ""
        return text + "".join(f"c_{n} = _f({n}_)\n" for n in self.constants)

    def text(self) -> str:
        return self.forward() + self.backward()

    @property
    def scalars(self) -> str:
        return ", ".join(f"c_{n}" for n in (*(self.used if self.uniform else ()), *self.constants))

    def names(self, prefix: str) -> str:
        """One name for each input."""
        return ", ".join(f"{prefix}_{n}" for n in self.d.inputs)

    def slices(self, prefix: str, at: str) -> str:
        """A chunk's row of each input, or of each input's gradient."""
        at = at or "at_x_{n}"
        return ", ".join(f"{prefix}_{n}[{s}:{s} + n]" for n in self.d.inputs for s in [at.format(n=n)])

    @property
    def strided(self) -> str:
        return ", ".join(f"x_{n}, x_{n}_stride" for n in self.d.inputs)

    @property
    def at_inputs(self) -> str:
        return "".join(f"at_x_{n} = t * x_{n}_stride + first\n" for n in self.d.inputs)

    @property
    def values(self) -> str:
        return "".join(f"{name}, " for name in [*(f"m_{n}" for n in self.carried), *(f"p_{n}" for n in self.used)])

    @property
    def numbers(self) -> str:
        return ", ".join(f"{n}_" for n in self.constants)

    def forward_row(self) -> str:
        body, new, out = self.step()
        keep = "".join(f"n_{n} = {e}\n" for n, e in new.items()) + f"out[j] = {out}\n"
        keep += "".join(f"{self.at(n)} = n_{n}\n" for n in new)
        return f"""
@njit(error_model='numpy')
def _forward_row({self.names("x")}, out, S, n, {self.scalars}):
    for j in range(n):
{indent(body, 8)}
{indent(keep, 8)}
"""

    def forward(self) -> str:
        ends = [n for n in self.carried if n != self.d.echo]
        return f"""{self.forward_row()}
@njit(nogil=True, error_model='numpy', cache=True)
def forward({self.strided}, out, steps, total, units, {self.values}{"".join(f"f_{n}, " for n in ends)}
            {self.numbers}, chunk, start, stop):
    S = np.empty({len(self.sections)} * C, np.dtype(_f))
{indent(self.head(), 4)}
    for first in range(start, stop, chunk):
        n = min(chunk, stop - first)
{indent(self.load(), 8)}
        for t in range(steps):
{indent(self.at_inputs, 12)}
            at_out = t * total + first
            _forward_row({self.slices("x", "")}, out[at_out:at_out + n], S, n, {self.scalars})
        for j in range(n):
            pass
{indent("".join(f"f_{n}[first + j] = {self.at(n)}{chr(10)}" for n in ends), 12)}
"""

    def backward_rows(self) -> str:
        """The step again, keeping what was before it, and the adjoint."""
        body, new, _ = self.step()
        again = "".join(f"k_{n}[j] = {self.at(n)}\n" for n in self.carried) + body + "\n"
        again += "".join(f"n_{n} = {e}\n" for n, e in new.items())
        again += "".join(f"{self.at(n)} = n_{n}\n" for n in new)
        body, d_inputs, d_states, d_parameters = self.adjoint()
        back = body + "\n" + "".join(f"dx_{n}[j] = {e}\n" for n, e in d_inputs.items())
        back += "".join(f"{self.at(f'g_{p}')} += {d_parameters[p]}\n" for p in self.learnt)
        back += "".join(f"n_{s} = {d_states[s]}\n" for s in self.real)
        back += "".join(f"{self.at(f'd_{s}')} = n_{s}\n" for s in self.real)
        return f"""
@njit(error_model='numpy')
def _again_row({self.names("x")}, S, n, {self.kept}{self.scalars}):
    for j in range(n):
{indent(again, 8)}

@njit(error_model='numpy')
def _back_row({self.names("x")}, grad, {self.names("dx")}, S, n, {self.kept}{self.scalars}):
    for j in range(n):
{indent(back, 8)}
"""

    @property
    def kept(self) -> str:
        return "".join(f"k_{n}, " for n in self.carried)

    def backward(self) -> str:
        rows = "".join(f"K[at_k + {k} * n:at_k + {k + 1} * n], " for k in range(len(self.carried)))
        load = "".join(f"{self.at(f'd_{s}')} = i_{s}[first + j]\n" for s in self.real)
        load += "".join(f"{self.at(f'g_{p}')} = _f(0.0)\n" for p in self.learnt)
        store = "".join(f"o_{s}[first + j] = {self.at(f'd_{s}')}\n" for s in self.real)
        store += "".join(f"o_{p}[first + j] = {self.at(f'g_{p}')}\n" for p in self.learnt)
        results = "".join(f"i_{s}, " for s in self.real) + "".join(f"o_{n}, " for n in (*self.real, *self.learnt))
        return f"""{self.backward_rows()}
@njit(nogil=True, error_model='numpy', cache=True)
def backward({self.strided}, grad, grad_stride, {self.names("dx")}, steps, total, units, {self.values}{results}
             {self.numbers}, chunk, start, stop):
    S = np.empty({len(self.sections)} * C, np.dtype(_f))
    K = np.empty({len(self.carried)} * steps * chunk, np.dtype(_f))
{indent(self.head(), 4)}
    for first in range(start, stop, chunk):
        n = min(chunk, stop - first)
{indent(self.load(), 8)}
        for t in range(steps):
{indent(self.at_inputs, 12)}
            at_k = t * {len(self.carried)} * n
            _again_row({self.slices("x", "")}, S, n, {rows}{self.scalars})
        for j in range(n):
            pass
{indent(load, 12)}
        for s in range(steps):
            t = steps - 1 - s
{indent(self.at_inputs, 12)}
            at_grad = t * grad_stride + first
            at_dx = t * total + first
            at_k = t * {len(self.carried)} * n
            _back_row({self.slices("x", "")}, grad[at_grad:at_grad + n], {self.slices("dx", "at_dx")}, S, n,
                      {rows}{self.scalars})
        for j in range(n):
            pass
{indent(store, 12)}
"""


def indent(text: str, spaces: int) -> str:
    """The lines of a text, moved to the right."""
    return textwrap.indent(text.rstrip(), " " * spaces)
