"""Fused loops on the CPU: a model's step and adjoint, written out as Numba source, compiled once and cached on disk.

The loop runs over chunks of columns (unit × batch) that fit the cache, with time inside, and on several threads over disjoint
ranges of columns, as many as `torch.get_num_threads()`. Backward reads the input again and steps through the chunk a second
time instead of keeping the membrane: what must be saved is the input and the initial state.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plexus.kernels._frame import Dynamics, Options, options_from
from plexus.kernels._memory import empty
from plexus.kernels._surrogate import SURROGATES

__all__ = ["backward", "cache_folder", "forward", "source"]

CHUNK = 2048  # columns a chunk may have at most: its state and parameters stay in the first two levels of cache
_SCRATCH = 512 << 10  # bytes that the steps of a chunk may take while backward walks through them again
_WORTH = 1 << 15  # elements that are worth a thread

_HEAD = """\
import math
import numpy as np
from numba import njit
from numba.extending import register_jitable
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
    """Decide the options, type the literals, and hand the spike its width and height."""

    def __init__(self, o: Options) -> None:
        self.o = o

    def visit_If(self, node: ast.If) -> list[ast.stmt]:
        chosen = eval(compile(ast.Expression(node.test), "<option>", "eval"), {"o": self.o})
        body = node.body if chosen else node.orelse
        found: list[ast.stmt] = []
        for statement in body:
            new = self.visit(statement)
            found.extend(new if isinstance(new, list) else [new])
        return found

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, float):
            return node
        return ast.Call(ast.Name("_f", ast.Load()), [node], [])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("spike", "slope"):
            node.args += [ast.Name("width", ast.Load()), ast.Name("height", ast.Load())]
        return node


def _scalar(function: Callable[..., Any], name: str, o: Options) -> str:
    """The source of a model's function, specialised."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    arguments = [a.arg for a in tree.args.args if a.arg not in ("spike", "slope", "o")]
    if len(arguments) != len(tree.args.args):
        arguments += ["width", "height"]
    tree = ast.fix_missing_locations(_Specialise(o).visit(tree))
    body = textwrap.indent("\n".join(ast.unparse(s) for s in tree.body), "    ")
    return f"\n@njit(forceinline=True, error_model='numpy')\ndef {name}({', '.join(arguments)}):\n{body}\n"


def source(dynamics: Dynamics, o: Options, dtype: str, uniform: bool) -> str:
    """The module that holds this model's fused loops, as text."""
    kind = SURROGATES[o.surrogate]
    text = [_HEAD.format(dtype=dtype, chunk=CHUNK)]
    text.append(_scalar(kind.derivative, "_derivative", o))
    if o.smooth:
        text.append(_scalar(kind.integral, "_integral", o))
        spike = "_f(0.5) + height * _integral(u, width)"
    else:
        spike = f"where(u {'>=' if o.inclusive else '>'} _f(0.0), _f(1.0), _f(0.0))"
    for name, value in (("spike", spike), ("slope", "height * _derivative(u, width)")):
        text.append(
            f"\n@njit(forceinline=True, error_model='numpy')\ndef {name}(u, width, height):\n    return {value}\n"
        )
    text.append(_scalar(dynamics.step, "step", o))
    text.append(_scalar(dynamics.adjoint, "adjoint", o))
    return "".join(text) + _Loops(dynamics, o, uniform).text()


class _Loops:
    """Writes the loops. A chunk's numbers lie in one scratch array, section after section of C, so that the compiler sees that
    they do not overlap and uses vector instructions."""

    def __init__(self, dynamics: Dynamics, o: Options, uniform: bool) -> None:
        self.d = dynamics
        self.carried = dynamics.carried(o)
        self.used = dynamics.used(o)
        self.uniform = uniform
        self.constants = [*dynamics.constants, "width", "height"]
        self.sections = [*self.carried, *(() if uniform else self.used)]
        self.real = [s for s in dynamics.states if s in self.carried]
        self.learnt = [p for p in dynamics.parameters if p in self.used]
        self.gradients = [*(f"d_{s}" for s in self.real), *(f"g_{p}" for p in self.learnt)]

    def section(self, name: str, index: str = "j") -> str:
        k = (self.sections + self.gradients).index(name)
        return f"S[{index}]" if k == 0 else f"S[{k} * C + {index}]"

    def value(self, name: str) -> str:
        if name in self.sections:
            return self.section(name)
        return name if name in self.used or name in self.constants else "_f(0.0)"

    def arguments(self) -> str:
        return ", ".join(self.value(n) for n in (*self.d.memory, *self.d.columns, *self.constants))

    def scalars(self) -> str:
        return ", ".join([*(self.used if self.uniform else ()), *self.constants])

    def results(self) -> str:
        return ", ".join(f"n_{n}" for n in self.d.memory)

    def lines(self, template: str, names: Sequence[str], indent: int = 8) -> str:
        return "".join(" " * indent + template.format(n=n, s=self.section(n)) + "\n" for n in names)

    def load(self) -> str:
        names = [*(f"p_{c}" for c in self.used)]
        text = "        for j in range(n):\n" + self.lines("{s} = m_{n}[a + j]", self.carried, 12)
        if not self.carried:
            text += "            pass\n"
        if not self.uniform and names:
            text += "        u = a % units\n        for j in range(n):\n"
            for name in self.used:
                text += f"            {self.section(name)} = p_{name}[u if p_{name}.size > 1 else 0]\n"
            text += "            u += 1\n            if u == units:\n                u = 0\n"
        return text

    def head(self) -> str:
        text = ""
        if self.uniform:
            text += "".join(f"    {n} = p_{n}[0]\n" for n in self.used)
        return text + "".join(f"    {n} = _f({n}_)\n" for n in self.constants)

    def text(self) -> str:
        d, carried = self.d, self.carried
        step = f"            n_out, {self.results()} = step(X, {self.arguments()})\n".replace("step(X", "step(x[j]")
        keep = self.lines("{s} = n_{n}", carried)
        stash = "".join(f"        k_{n}[j] = {self.section(n)}\n" for n in carried)
        scalars = self.scalars()
        memory = ", ".join(f"m_{n}" for n in carried)
        ends = [n for n in carried if n != d.echo]
        final = ", ".join(f"f_{n}" for n in ends)
        columns = ", ".join(f"p_{n}" for n in self.used)
        constants = ", ".join(f"{n}_" for n in self.constants)
        n_sections = len(self.sections)
        forward = f"""
@njit(error_model='numpy')
def _forward_row(x, out, S, n, {scalars}):
    for j in range(n):
{step.replace("            ", "        ", 1)}{keep}        out[j] = n_out

@njit(nogil=True, error_model='numpy', cache=True)
def forward(x, x_stride, out, steps, total, units, {memory}, {final}, {columns}, {constants}, chunk, first, last):
    S = np.empty({n_sections} * C, np.dtype(_f))
{self.head()}    for a in range(first, last, chunk):
        n = min(chunk, last - a)
{self.load()}        for t in range(steps):
            i = t * x_stride + a
            k = t * total + a
            _forward_row(x[i:i + n], out[k:k + n], S, n, {scalars})
        for j in range(n):
{self.lines("f_{n}[a + j] = {s}", ends, 12)}"""
        before = {n: f"k_{n}[j]" for n in carried}
        arguments = ", ".join(before.get(n, self.value(n)) for n in (*d.memory, *d.columns, *d.constants))
        d_states = ", ".join(self.section(f"d_{s}") if s in self.real else "_f(0.0)" for s in d.states)
        kept = ", ".join(f"k_{n}" for n in carried)
        rows = ", ".join(f"K[{k} * steps * chunk + t * n:{k} * steps * chunk + t * n + n]" for k in range(len(carried)))
        learn = "".join(f"            {self.section(f'g_{p}')} += n_g_{p}\n" for p in self.learnt)
        unpack = ", ".join(["n_x", *(f"n_d_{s}" for s in d.states), *(f"n_g_{p}" for p in d.parameters)])
        incoming = ", ".join(f"i_{s}" for s in self.real)
        outgoing = ", ".join(f"o_{n}" for n in (*self.real, *self.learnt))
        sizes = len(self.sections) + len(self.gradients)

        def row(name: str, extra: str) -> str:
            return f"""
@njit(error_model='numpy')
def {name}(x, grad, dx, S, n, {kept}, {scalars}):
    for j in range(n):
        {unpack} = adjoint(x[j], {arguments}, grad[j], {d_states}, width, height)
        dx[j] = n_x
{self.lines("{s} = n_{n}", [f"d_{s}" for s in self.real])}{textwrap.indent(textwrap.dedent(extra), "        ")}"""

        backward = f"""
@njit(error_model='numpy')
def _again_row(x, S, n, {kept}, {scalars}):
    for j in range(n):
{stash}{step.replace("            ", "        ", 1)}{keep}{row("_back_row", "")}{row("_learn_row", learn)}
@njit(nogil=True, error_model='numpy', cache=True)
def backward(x, x_stride, grad, grad_stride, dx, steps, total, units, {memory}, {columns}, {incoming}, {outgoing},
             {constants}, learn, chunk, first, last):
    S = np.zeros({sizes} * C, np.dtype(_f))
    K = np.empty({len(carried)} * steps * chunk, np.dtype(_f))
{self.head()}    for a in range(first, last, chunk):
        n = min(chunk, last - a)
{self.load()}        for t in range(steps):
            i = t * x_stride + a
            _again_row(x[i:i + n], S, n, {rows}, {scalars})
        for j in range(n):
{"".join(f"            {self.section(f'd_{s}')} = i_{s}[a + j]{chr(10)}" for s in self.real)}\
{"".join(f"            {self.section(f'g_{p}')} = _f(0.0){chr(10)}" for p in self.learnt)}\
        for s in range(steps):
            t = steps - 1 - s
            i = t * x_stride + a
            g = t * grad_stride + a
            k = t * total + a
            if learn:
                _learn_row(x[i:i + n], grad[g:g + n], dx[k:k + n], S, n, {rows}, {scalars})
            else:
                _back_row(x[i:i + n], grad[g:g + n], dx[k:k + n], S, n, {rows}, {scalars})
        for j in range(n):
{"".join(f"            o_{s}[a + j] = {self.section(f'd_{s}')}{chr(10)}" for s in self.real)}\
        if learn:
            for j in range(n):
{"".join(f"                o_{p}[a + j] = {self.section(f'g_{p}')}{chr(10)}" for p in self.learnt)}\
"""
        return forward + backward


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where compiled loops are kept: `$PLEXUS_CACHE`, else the user's cache folder, else one that lives as long as the process."""
    base = os.environ.get("PLEXUS_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / ("kernels" if os.environ.get("PLEXUS_CACHE") else "plexus/kernels")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="plexus-kernels-"))


_building = threading.Lock()


@lru_cache(maxsize=256)
def _module(dynamics: Dynamics, key: str, dtype: str, uniform: bool) -> ModuleType:
    text = source(dynamics, options_from(dynamics, key), dtype, uniform)
    name = f"_plexus_{dynamics.name}_{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    with _building:
        path = cache_folder() / f"{name}.py"
        if not (path.exists() and path.read_text(encoding="utf-8") == text):
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return module


_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="plexus-kernel"), count
    return _pool


def _spread(kernel: Callable[..., None], arguments: tuple[Any, ...], total: int, steps: int) -> None:
    """Run the kernel over all columns: on several threads where there is enough to do."""
    threads = max(1, min(torch.get_num_threads(), total * steps // _WORTH))
    edges = [min(total, -(-total * k // threads) // 64 * 64) for k in range(threads)] + [total]
    parts = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    others = [_workers(threads - 1).submit(kernel, *arguments, a, b) for a, b in parts[1:]]
    for a, b in parts[:1]:
        kernel(*arguments, a, b)
    for other in others:
        other.result()


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """x as `[time, column]` with dense rows: a flat tensor and the distance between rows (0 for a constant input)."""
    steps, total = x.shape[0], x[0].numel() if x.shape[0] else 0
    if steps == 0 or total == 0:
        return x.reshape(-1), 0
    first = x[0]
    if not first.is_contiguous():
        x = x.contiguous()
    stride = x.stride(0) if steps > 1 else total
    return torch.as_strided(x, ((steps - 1) * stride + total,), (1,)), stride


def _flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().contiguous().view(-1).numpy()  # type: ignore[no-any-return]


def _prepare(
    dynamics: Dynamics, x: Tensor, columns: Sequence[Tensor], options: str
) -> tuple[ModuleType, Options, list[np.ndarray[Any, Any]], int]:
    o = options_from(dynamics, options)
    used = [column for name, column in zip(dynamics.columns, columns, strict=True) if name in dynamics.used(o)]
    uniform = all(column.numel() == 1 for column in used)
    units = max([1, *(column.numel() for column in used)])
    module = _module(dynamics, options, str(x.dtype).rpartition(".")[2], uniform)
    return module, o, [_flat(column) for column in used], units


def forward(
    dynamics: Dynamics,
    x: Tensor,
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
) -> list[Tensor]:
    """The fused loop: `[out, *memory]` after the last step, without the state that echoes the output."""
    module, o, used, units = _prepare(dynamics, x, columns, options)
    out = empty(tuple(x.shape), x)
    steps, total = x.shape[0], memory[0].numel()
    flat, stride = _rows(x)
    carried = dynamics.carried(o)
    before = [_flat(m) for name, m in zip(dynamics.memory, memory, strict=True) if name in carried]
    kept = [(name, m) for name, m in zip(dynamics.memory, memory, strict=True) if name != dynamics.echo]
    after = [torch.empty_like(m, memory_format=torch.contiguous_format) for _, m in kept]
    for (name, m), fresh in zip(kept, after, strict=True):
        if name not in carried:
            fresh.copy_(m)
    final = [_flat(fresh) for (name, _), fresh in zip(kept, after, strict=True) if name in carried]
    arguments = (flat.detach().numpy(), stride, _flat(out), steps, total, units, *before, *final, *used, *constants, CHUNK)
    _spread(module.forward, arguments, total, steps)
    return [out, *after]


def backward(
    dynamics: Dynamics,
    x: Tensor,
    memory: Sequence[Tensor],
    columns: Sequence[Tensor],
    constants: Sequence[float],
    options: str,
    grad: Tensor,
    grad_states: Sequence[Tensor],
    learn: bool,
) -> list[Tensor]:
    """The fused adjoint: `[d_x, *d_states, *d_parameters]`, parameters as one number per column (empty unless asked for)."""
    module, o, used, units = _prepare(dynamics, x, columns, options)
    steps, total = x.shape[0], memory[0].numel()
    carried = dynamics.carried(o)
    dx = empty(tuple(x.shape), x)
    flat, stride = _rows(x)
    flat_grad, grad_stride = _rows(grad)
    before = [_flat(m) for name, m in zip(dynamics.memory, memory, strict=True) if name in carried]
    shape = memory[0].shape
    d_first = [x.new_empty(shape) if name in carried else x.new_zeros(shape) for name in dynamics.states]
    named = dynamics.used(o)
    d_columns = [
        x.new_empty(shape) if learn and name in named else x.new_zeros(shape if learn else (0,))
        for name in dynamics.parameters
    ]
    real = [k for k, name in enumerate(dynamics.states) if name in carried]
    learnt = [k for k, name in enumerate(dynamics.parameters) if name in named]
    chunk = _SCRATCH // max(1, steps * x.element_size() * len(carried))
    chunk = max(64, min(CHUNK, chunk // 64 * 64))
    arguments = (flat.detach().numpy(), stride, flat_grad.detach().numpy(), grad_stride, _flat(dx), steps, total, units)
    adjoints = (
        *(_flat(grad_states[k]) for k in real),
        *(_flat(d_first[k]) for k in real),
        *(_flat(d_columns[k]) for k in learnt),
    )
    _spread(module.backward, (*arguments, *before, *used, *adjoints, *constants, learn, chunk), total, steps)
    return [dx, *d_first, *d_columns]
