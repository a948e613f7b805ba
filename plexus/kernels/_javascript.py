"""The neuron models as JavaScript, for the playground of the documentation: what runs there is what runs here.

An expression in the words of `_dialect` reads the same in both languages, so a step is its specialised source with the
statements rewritten. `python -m plexus.kernels._javascript FILE` writes the file that the page loads.
"""

from __future__ import annotations

import ast
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plexus.kernels._adex_model import ADEX_DYNAMICS
from plexus.kernels._alif_model import ALIF_DYNAMICS
from plexus.kernels._frame import PORT, Dynamics, options_from, options_key
from plexus.kernels._izhikevich_model import IZHIKEVICH_DYNAMICS
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._source import Specialise, indent
from plexus.kernels._surrogate import SURROGATES

__all__ = ["MODELS", "function", "javascript"]

_HEAD = """\
// Written by `python -m plexus.kernels._javascript` from the equations in plexus/kernels: change those, not this file.
globalThis.PlexusNeurons = (() => {
  "use strict";
  const where = (condition, yes, no) => (condition ? yes : no);
  const clip = (x, low, high) => (x < low ? low : x > high ? high : x);
  const absolute = Math.abs;
  const exp = Math.exp;
  const stop = (x) => x;
  const spike = (u) => (u > 0.0 ? 1.0 : 0.0);

"""
_WORDS = {"where", "clip", "absolute", "exp", "stop", "spike"}
_ALIKE = (
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.USub, ast.Name, ast.Load, ast.Constant),
    *(ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Call),
)

#: The variants that the page offers: its name for one, the model, and the options that differ from the defaults.
MODELS: Mapping[str, tuple[Dynamics, Mapping[str, Any]]] = {
    "lif_soft": (LIF_DYNAMICS, {"refractory": True}),
    "lif_hard": (LIF_DYNAMICS, {"refractory": True, "reset": "hard"}),
    "alif_soft": (ALIF_DYNAMICS, {"refractory": True}),
    "alif_hard": (ALIF_DYNAMICS, {"refractory": True, "reset": "hard"}),
    "adex": (ADEX_DYNAMICS, {}),
    "izhikevich_halved": (IZHIKEVICH_DYNAMICS, {}),
    "izhikevich_whole": (IZHIKEVICH_DYNAMICS, {"halved": False}),
}


class _Choose(Specialise):
    """Decide the options, and leave the rest as it is written."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return node


def _expression(node: ast.expr) -> str:
    """The text of an expression that means the same in both languages; others are refused."""
    for part in ast.walk(node):
        known = isinstance(part, _ALIKE)
        if isinstance(part, ast.Call):
            known = isinstance(part.func, ast.Name) and part.func.id in _WORDS and not part.keywords
        if isinstance(part, ast.Compare):
            known = len(part.ops) == 1  # a < b < c means something else in JavaScript
        if isinstance(part, ast.Constant):
            known = isinstance(part.value, float) and math.isfinite(part.value)
        if not known:
            raise ValueError(f"not the same in JavaScript: {ast.unparse(node)!r} ({type(part).__name__})")
    return ast.unparse(node)


def function(step: Callable[..., Any], options: Any = None, unused: tuple[str, ...] = ()) -> str:
    """A function of a model with its options decided, as the text of a JavaScript function.

    Args:
        step: a function in the words of `_dialect`.
        options: the options `o` it asks for.
        unused: arguments to leave out, which the chosen options never mention.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(step))).body[0]
    tree = ast.fix_missing_locations(_Choose(options, set()).visit(tree))
    assert isinstance(tree, ast.FunctionDef)
    arguments = [a.arg for a in tree.args.args if a.arg not in ("spike", "o", *unused)]
    known, lines = set(arguments), []
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
            lines.append(f"{'' if target.id in known else 'let '}{target.id} = {_expression(statement.value)};")
            known.add(target.id)
        elif isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
            lines.append(f"return [{', '.join(map(_expression, statement.value.elts))}];")
        elif isinstance(statement, ast.Return) and statement.value is not None:
            lines.append(f"return {_expression(statement.value)};")
        else:
            raise ValueError(f"a step has no such statement: {ast.unparse(statement)!r}")
    return f"({', '.join(arguments)}) => {{\n{indent(chr(10).join(lines), 2)}\n}}"


def _model(name: str, dynamics: Dynamics, chosen: Mapping[str, Any]) -> str:
    options = options_from(dynamics, options_key(dynamics, chosen))
    fields = "".join(
        f"  {label}: [{', '.join(f'{chr(34)}{n}{chr(34)}' for n in names)}],\n"
        for label, names in (("memory", dynamics.memory), ("numbers", (*dynamics.numbers, *dynamics.constants)))
    )
    return f"{name}: {{\n{fields}{indent('step: ' + function(dynamics.step, options, PORT), 2)},\n}},\n"


def javascript() -> str:
    """The whole file: every variant of `MODELS` and every surrogate derivative."""
    models = "".join(_model(name, *model) for name, model in MODELS.items())
    surrogates = "".join(f"{name}: {function(kind.derivative)},\n" for name, kind in SURROGATES.items())
    widths = ", ".join(
        f"{n}: {'Infinity' if math.isinf(k.width) else repr(float(k.width))}" for n, k in SURROGATES.items()
    )
    body = f"const models = {{\n{indent(models, 2)}\n}};\n\nconst surrogates = {{\n{indent(surrogates, 2)}\n}};\n\n"
    body += f"const widths = {{ {widths} }};\n\nreturn {{ models, surrogates, widths }};\n"
    return f"{_HEAD}{indent(body, 2)}\n}})();\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(javascript())
