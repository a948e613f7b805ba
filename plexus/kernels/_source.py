"""Fused loops as Numba source: a model's step and adjoint, specialised and written into loops over time and columns."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from plexus.kernels._frame import Dynamics, Options
from plexus.kernels._surrogate import SURROGATES

__all__ = ["CHUNK", "source"]

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


class _Specialise(ast.NodeTransformer):
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
            node.args += [ast.Name("width", ast.Load()), ast.Name("height", ast.Load())]
        return node


def _inlined(function: Callable[..., Any], o: Options, values: Sequence[str]) -> tuple[str, list[str]]:
    """A model's function as statements for the inside of a loop, and the expressions that it returns."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    arguments = [a.arg for a in tree.args.args if a.arg not in ("spike", "slope", "o")]
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    tree = ast.fix_missing_locations(_Specialise(o, {*arguments, *assigned}).visit(tree))
    *body, last = tree.body
    assert isinstance(last, ast.Return)
    assert last.value is not None
    results = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    head = [f"y_{name} = {value}" for name, value in zip(arguments, values, strict=True)]
    return "\n".join([*head, *map(ast.unparse, body)]), [ast.unparse(r) for r in results]


def _helper(name: str, function: Callable[..., Any], o: Options, shape: str) -> str:
    body, (result,) = _inlined(function, o, ["u", "width"])
    lines = textwrap.indent(f"{body}\nreturn {shape.format(result)}\n", "    ")
    return f"\n@njit(forceinline=True, error_model='numpy')\ndef {name}(u, width, height):\n{lines}"


def source(dynamics: Dynamics, o: Options, dtype: str, uniform: bool, learn: bool) -> str:
    """The module that holds this model's fused loops, as text."""
    kind = SURROGATES[o.surrogate]
    text = _HEAD.format(dtype=dtype, chunk=CHUNK) + _helper("slope", kind.derivative, o, "height * ({})")
    if o.smooth:
        text += _helper("spike", kind.integral, o, "_f(0.5) + height * ({})")
    else:
        relation = ">=" if o.inclusive else ">"
        text += "\n@njit(forceinline=True)\ndef spike(u, width, height):\n"
        text += f"    return _f(1.0) if u {relation} _f(0.0) else _f(0.0)\n"
    return text + _Loops(dynamics, o, uniform, learn).text()


class _Loops:
    """Writes the loops.

    A chunk's numbers lie in one scratch array, section after section of C, so that the compiler sees that they do not
    overlap and uses vector instructions.
    """

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
        return name if name in self.used or name in self.constants else "_f(0.0)"

    def step(self) -> tuple[str, dict[str, str], str]:
        """One step on the scratch: statements, the new value of what is carried, and the output."""
        names = (*self.d.memory, *self.d.columns, *self.d.constants)
        body, (out, *new) = _inlined(self.d.step, self.o, ["x[j]", *(self.value(n) for n in names)])
        return body, {n: e for n, e in zip(self.d.memory, new, strict=True) if n in self.carried}, out

    def load(self) -> str:
        text = "for j in range(n):\n    pass\n"
        text += "".join(f"    {self.at(n)} = m_{n}[first + j]\n" for n in self.carried)
        if not self.uniform:
            text += "unit = first % units\nfor j in range(n):\n"
            text += "".join(f"    {self.at(n)} = p_{n}[unit if p_{n}.size > 1 else 0]\n" for n in self.used)
            text += "    unit += 1\n    if unit == units:\n        unit = 0\n"
        return text

    def head(self) -> str:
        text = "".join(f"{n} = p_{n}[0]\n" for n in self.used) if self.uniform else ""
        return text + "".join(f"{n} = _f({n}_)\n" for n in self.constants)

    def text(self) -> str:
        return self.forward() + self.backward()

    @property
    def scalars(self) -> str:
        return ", ".join([*(self.used if self.uniform else ()), *self.constants])

    @property
    def inputs(self) -> str:
        return ", ".join([*(f"m_{n}" for n in self.carried), *(f"p_{n}" for n in self.used)])

    @property
    def numbers(self) -> str:
        return ", ".join(f"{n}_" for n in self.constants)

    def forward(self) -> str:
        body, new, out = self.step()
        ends = [n for n in self.carried if n != self.d.echo]
        keep = "".join(f"n_{n} = {e}\n" for n, e in new.items()) + f"out[j] = {out}\n"
        keep += "".join(f"{self.at(n)} = n_{n}\n" for n in new)
        return f"""
@njit(error_model='numpy')
def _forward_row(x, out, S, n, {self.scalars}):
    for j in range(n):
{_indent(body, 8)}
{_indent(keep, 8)}

@njit(nogil=True, error_model='numpy', cache=True)
def forward(x, x_stride, out, steps, total, units, {self.inputs}, {", ".join(f"f_{n}" for n in ends)},
            {self.numbers}, chunk, start, stop):
    S = np.empty({len(self.sections)} * C, np.dtype(_f))
{_indent(self.head(), 4)}
    for first in range(start, stop, chunk):
        n = min(chunk, stop - first)
{_indent(self.load(), 8)}
        for t in range(steps):
            at_x = t * x_stride + first
            at_out = t * total + first
            _forward_row(x[at_x:at_x + n], out[at_out:at_out + n], S, n, {self.scalars})
        for j in range(n):
            pass
{_indent("".join(f"f_{n}[first + j] = {self.at(n)}{chr(10)}" for n in ends), 12)}
"""

    def backward(self) -> str:
        body, new, _ = self.step()
        again = "".join(f"k_{n}[j] = {self.at(n)}\n" for n in self.carried) + body + "\n"
        again += "".join(f"n_{n} = {e}\n" for n, e in new.items())
        again += "".join(f"{self.at(n)} = n_{n}\n" for n in new)
        values = [f"k_{n}[j]" if n in self.carried else "_f(0.0)" for n in self.d.memory]
        values += [self.value(n) for n in (*self.d.columns, *self.d.constants)]
        incoming = [self.at(f"d_{s}") if s in self.real else "_f(0.0)" for s in self.d.states]
        body, (d_x, *more) = _inlined(self.d.adjoint, self.o, ["x[j]", *values, "grad[j]", *incoming])
        d_states = dict(zip(self.d.states, more, strict=False))
        d_parameters = dict(zip(self.d.parameters, more[len(self.d.states) :], strict=True))
        back = body + f"\ndx[j] = {d_x}\n"
        back += "".join(f"{self.at(f'g_{p}')} += {d_parameters[p]}\n" for p in self.learnt)
        back += "".join(f"n_{s} = {d_states[s]}\n" for s in self.real)
        back += "".join(f"{self.at(f'd_{s}')} = n_{s}\n" for s in self.real)
        kept = ", ".join(f"k_{n}" for n in self.carried)
        rows = ", ".join(f"K[at_k + {k} * n:at_k + {k + 1} * n]" for k in range(len(self.carried)))
        load = "".join(f"{self.at(f'd_{s}')} = i_{s}[first + j]\n" for s in self.real)
        load += "".join(f"{self.at(f'g_{p}')} = _f(0.0)\n" for p in self.learnt)
        store = "".join(f"o_{s}[first + j] = {self.at(f'd_{s}')}\n" for s in self.real)
        store += "".join(f"o_{p}[first + j] = {self.at(f'g_{p}')}\n" for p in self.learnt)
        results = ", ".join([*(f"i_{s}" for s in self.real), *(f"o_{n}" for n in (*self.real, *self.learnt))])
        return f"""
@njit(error_model='numpy')
def _again_row(x, S, n, {kept}, {self.scalars}):
    for j in range(n):
{_indent(again, 8)}

@njit(error_model='numpy')
def _back_row(x, grad, dx, S, n, {kept}, {self.scalars}):
    for j in range(n):
{_indent(back, 8)}

@njit(nogil=True, error_model='numpy', cache=True)
def backward(x, x_stride, grad, grad_stride, dx, steps, total, units, {self.inputs}, {results},
             {self.numbers}, chunk, start, stop):
    S = np.empty({len(self.sections)} * C, np.dtype(_f))
    K = np.empty({len(self.carried)} * steps * chunk, np.dtype(_f))
{_indent(self.head(), 4)}
    for first in range(start, stop, chunk):
        n = min(chunk, stop - first)
{_indent(self.load(), 8)}
        for t in range(steps):
            at_x = t * x_stride + first
            at_k = t * {len(self.carried)} * n
            _again_row(x[at_x:at_x + n], S, n, {rows}, {self.scalars})
        for j in range(n):
            pass
{_indent(load, 12)}
        for s in range(steps):
            t = steps - 1 - s
            at_x = t * x_stride + first
            at_grad = t * grad_stride + first
            at_dx = t * total + first
            at_k = t * {len(self.carried)} * n
            _back_row(x[at_x:at_x + n], grad[at_grad:at_grad + n], dx[at_dx:at_dx + n], S, n, {rows}, {self.scalars})
        for j in range(n):
            pass
{_indent(store, 12)}
"""


def _indent(text: str, spaces: int) -> str:
    return textwrap.indent(text.rstrip(), " " * spaces)
