"""Fused loops as Triton source: the same step and adjoint as in `_source`, written into kernels for a GPU.

A program owns a block of columns (unit × batch). What is carried, the numbers of the units and the gradients on their
way back are values in its registers; time is a loop inside the kernel, so that a whole sequence is one launch, and what
moves is the input and the output. No two programs meet: a parameter's gradient is one number per column.

Backward has what the operator saves, the input and the first state. It walks through time once and leaves in `H` what
was carried into each stretch of steps; then, from the last stretch to the first, it steps through the stretch again,
writes what was carried into each step to `K`, and takes the adjoints. Stretches of √T steps keep `H` and `K` at √T rows
each; where all fits, one stretch is all, and the first walk has nothing to do.

A recurrent layer has a product between two steps. Forwards it launches `forward` for every step; backwards its currents
are known, so `again` steps through a stretch and writes `K`, and `retreat` takes the adjoint of one step.

Numbers are rounded as in the eager reference, except by `exp`, `erf` and `arctan`: divisions are exact, and kernels are
compiled without contraction to multiply-adds.
"""

from __future__ import annotations

import ast

from plexus.kernels._frame import Dynamics, Options
from plexus.kernels._source import Loops, Specialise, indent, spikes

__all__ = ["triton_source"]

_HEAD = """\
import triton
import triton.language as tl
F = tl.constexpr(tl.{dtype})

@triton.jit
def _f(x):
    return tl.full((), x, F)

@triton.jit
def where(c, a, b):
    return tl.where(c, a, b)

@triton.jit
def clip(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))

@triton.jit
def absolute(x):
    return tl.abs(x)

@triton.jit
def stop(x):
    return x

@triton.jit
def exp(x):
    return tl.exp(x)

@triton.jit
def erf(x):
    return tl.erf(x)

@triton.jit
def arctan(x):
    # arctan x = sign(x) π/2 - arctan 1/x brings |x| below 1, arctan x = 2 arctan(x / (1 + √(1 + x²))) twice below 0.2
    a = tl.abs(x)
    far = a > _f(1.0)
    y = tl.where(far, divide(_f(1.0), a), a)
    y = divide(y, _f(1.0) + tl.sqrt(_f(1.0) + y * y))
    y = divide(y, _f(1.0) + tl.sqrt(_f(1.0) + y * y))
    s = y * y
    series = _f({first})
    for power in tl.static_range({half}, -1, -1):
        series = _f(1.0 / (2.0 * power + 1.0)) - s * series
    y = _f(4.0) * y * series
    y = tl.where(far, _f(1.5707963267948966) - y, y)
    return tl.where(x < _f(0.0), _f(0.0) - y, y)
"""

# Triton's division of float32 is within two units in the last place unless asked; its interpreter knows one division
_PLAIN_DIVISION = """
@triton.jit
def divide(a, b):
    return a / b
"""
_EXACT_DIVISION = """
if triton.knobs.runtime.interpret:
    @triton.jit
    def divide(a, b):
        return a / b
else:
    @triton.jit
    def divide(a, b):
        return tl.div_rn(a, b)
"""


class _Specialise(Specialise):
    """Further, divide as the dtype needs it."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Div):
            return ast.Call(ast.Name("divide", ast.Load()), [node.left, node.right], [])
        return node


def triton_source(dynamics: Dynamics, o: Options, dtype: str, uniform: bool, learn: bool) -> str:
    """The module that holds this model's kernels, as text; one for all `uniform`, as they read numbers per column."""
    text = _HEAD.format(dtype=dtype, first=1 / 25, half=11)
    text += _EXACT_DIVISION if dtype == "float32" else _PLAIN_DIVISION
    return text + spikes(o, "@triton.jit", _Specialise) + _Kernels(dynamics, o, True, learn).text()


class _Kernels(Loops):
    """Writes the kernels. What is a section of the scratch in `Loops` is a variable here."""

    specialise = _Specialise

    def at(self, name: str) -> str:
        return f"s_{name}"

    def now(self, name: str) -> str:
        return f"now_{name}"

    def before(self, name: str) -> str:
        return f"k_{name}"

    def text(self) -> str:
        return self.forward() + self.backward() + self.again() + self.retreat()

    @property
    def columns(self) -> str:
        return "".join(f"p_{n}, p_{n}_step, " for n in self.used)

    @property
    def values(self) -> str:
        return "".join(f"m_{n}, " for n in self.carried) + self.columns

    @property
    def numbers(self) -> str:
        return ", ".join(f'{n}_: "fp64"' for n in self.constants)

    def begin(self) -> str:
        """The columns of this program and their numbers."""
        text = "column = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)\n"
        text += "inside = column < total\nunit = column % units\n"
        text += "".join(f"c_{n} = tl.load(p_{n} + unit * p_{n}_step)\n" for n in self.used)
        return text + "".join(f"c_{n} = _f({n}_)\n" for n in self.constants)

    def start(self) -> str:
        """Further, what is carried into the first step."""
        return self.begin() + "".join(_load(self.at(n), f"m_{n} + column") for n in self.carried)

    def read(self, *names: str) -> str:
        """This step's row of inputs or of the output's gradient."""
        return "".join(_load(self.now(n), _row(n, "t", f"{n}_stride")) for n in names)

    def advanced(self, emit: bool = False) -> str:
        """One step; its output is written where it is asked for."""
        body, new, out = self.step()
        text = self.read(*(f"x_{n}" for n in self.d.inputs)) + body + "\n"
        text += _store(_row("out", "t"), out) if emit else ""
        return text + _assign({self.at(n): e for n, e in new.items()})

    def retreated(self) -> str:
        """One step backwards, from what was carried into it."""
        body, d_inputs, d_states, d_parameters = self.adjoint()
        text = self.read(*(f"x_{n}" for n in self.d.inputs), "grad")
        text += "".join(_load(self.before(n), self.place("K", "i", n)) for n in self.carried) + body + "\n"
        text += "".join(_store(_row(f"dx_{n}", "t"), e) for n, e in d_inputs.items())
        text += "".join(f"{self.at(f'g_{p}')} += {d_parameters[p]}\n" for p in self.learnt)
        return text + _assign({self.at(f"d_{s}"): d_states[s] for s in self.real})

    def keep(self) -> str:
        """Write what is carried into step i."""
        return "".join(_store(self.place("K", "i", n), self.at(n)) for n in self.carried)

    def place(self, buffer: str, index: str, name: str) -> str:
        """Where a buffer `[index, carried, column]` keeps something that is carried."""
        return _row(buffer, f"({index} * {len(self.carried)} + {self.carried.index(name)})")

    def forward(self) -> str:
        ends = [n for n in self.carried if n != self.d.echo]
        finals = "".join(f"f_{n}, " for n in ends)
        return f"""
@triton.jit(do_not_specialize=["steps"])
def forward({self.strided}, out, steps, total, units, {self.values}{finals}
            {self.numbers}, BLOCK: tl.constexpr):
{indent(self.start(), 4)}
    for t in range(steps):
{indent(self.advanced(emit=True), 8)}
{indent("".join(_store(f"f_{n} + column", self.at(n)) for n in ends), 4)}
"""

    def backward(self) -> str:
        ends = [f"d_{s}" for s in self.real]
        sums = [f"g_{p}" for p in self.learnt]
        results = "".join(f"i_{s}, " for s in self.real) + "".join(f"o_{n}, " for n in (*self.real, *self.learnt))
        turn = "".join(_load(self.at(n), f"i_{n[2:]} + column") for n in ends)
        turn += "".join(f"{self.at(n)} = tl.zeros((BLOCK,), F)\n" for n in sums)
        arrive = "".join(_store(f"o_{n[2:]} + column", self.at(n)) for n in (*ends, *sums))
        leave = "".join(_store(self.place("H", "h", n), self.at(n)) for n in self.carried)
        resume = "".join(_load(self.at(n), self.place("H", "h", n)) for n in self.carried)
        return f"""
@triton.jit(do_not_specialize=["steps", "stretch"])
def backward({self.strided}, grad, grad_stride, {self.names("dx")}, steps, total, units, {self.values}{results}
             H, K, stretch, {self.numbers}, BLOCK: tl.constexpr):
{indent(self.start(), 4)}
    stretches = tl.cdiv(steps, stretch)
    for h in range(stretches):
{indent(leave, 8)}
        for t in range(h * stretch, tl.minimum((h + 1) * stretch, (stretches - 1) * stretch)):
{indent(self.advanced(), 12)}
    tl.debug_barrier()  # what one thread wrote to H or K another one may read
{indent(turn, 4)}
    for back in range(stretches):
        h = stretches - 1 - back
        first = h * stretch
        n = tl.minimum(stretch, steps - first)
{indent(resume, 8)}
        for i in range(n):
            t = first + i
{indent(self.keep(), 12)}
{indent(self.advanced(), 12)}
        tl.debug_barrier()
        for j in range(n):
            i = n - 1 - j
            t = first + i
{indent(self.retreated(), 12)}
        tl.debug_barrier()
{indent(arrive, 4)}
"""

    def again(self) -> str:
        """A stretch of steps that keeps what is carried into each of them."""
        ends = "".join(_store(f"f_{n} + column", self.at(n)) for n in self.carried)
        return f"""
@triton.jit(do_not_specialize=["steps"])
def again({self.strided}, K, steps, total, units, {self.values}{"".join(f"f_{n}, " for n in self.carried)}
          {self.numbers}, BLOCK: tl.constexpr):
{indent(self.start(), 4)}
    for i in range(steps):
        t = i
{indent(self.keep(), 8)}
{indent(self.advanced(), 8)}
{indent(ends, 4)}
"""

    def retreat(self) -> str:
        """The adjoint of one step, in place of the gradients that come to it."""
        passed = [*(f"d_{s}" for s in self.real), *(f"g_{p}" for p in self.learnt)]
        return f"""
@triton.jit
def retreat({self.strided}, grad, grad_stride, {self.names("dx")}, K, total, units, {self.columns}
            {"".join(f"{n}, " for n in passed)}{self.numbers}, BLOCK: tl.constexpr):
{indent(self.begin() + "".join(_load(self.at(n), f"{n} + column") for n in passed), 4)}
    t = 0
    i = 0
{indent(self.retreated(), 4)}
{indent("".join(_store(f"{n} + column", self.at(n)) for n in passed), 4)}
"""


def _row(name: str, index: str, stride: str = "total") -> str:
    return f"{name} + tl.cast({index}, tl.int64) * {stride} + column"


def _load(target: str, place: str) -> str:
    return f"{target} = tl.load({place}, mask=inside, other=0.0)\n"


def _store(place: str, value: str) -> str:
    return f"tl.store({place}, tl.broadcast_to({value}, (BLOCK,)), mask=inside)\n"


def _assign(values: dict[str, str]) -> str:
    """Assign all at once: no new value sees another one. A number that is the same for all columns becomes a block."""
    text = "".join(f"n{name} = tl.broadcast_to({value}, (BLOCK,))\n" for name, value in values.items())
    return text + "".join(f"{name} = n{name}\n" for name in values)
