"""Compile Triton kernels down to a GPU's machine code, which needs no GPU. `test_triton.py` runs this file."""

from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from plexus.kernels._coba_model import COBA_DYNAMICS
from plexus.kernels._frame import options_key
from plexus.kernels._lif_model import LIF_DYNAMICS
from plexus.kernels._triton import BLOCK
from plexus.kernels._triton_source import triton_source
from plexus.kernels._written import written_module

SHORT = {"float32": "fp32", "float64": "fp64"}


def types(kernel, dtype):
    """The type of each argument, as a launch has it."""
    found = {}
    for parameter in kernel.params:
        name = parameter.name
        if name == "BLOCK":
            found[name] = "constexpr"
        elif name.endswith("_"):
            found[name] = "fp64"
        elif name in ("steps", "total", "units", "stretch") or name.endswith(("_stride", "_step")):
            found[name] = "i32"
        else:
            found[name] = f"*{SHORT[dtype]}"
    return found


for dynamics, chosen, dtype in (
    (LIF_DYNAMICS, {"port": True, "refractory": True, "smooth": True}, "float32"),
    (COBA_DYNAMICS, {"port": True, "surrogate": "gaussian", "smooth": True}, "float64"),
):
    module = written_module(triton_source, dynamics, options_key(dynamics, chosen), dtype, True, True)
    for kernel in (module.forward, module.backward, module.again, module.retreat):
        source = ASTSource(kernel, types(kernel, dtype), constexprs={"BLOCK": BLOCK})
        found = compiled(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False})
        assert found.asm["cubin"]
        code = found.asm["ptx"]
        short = "f" + SHORT[dtype][2:]
        # rounded like the eager reference: no contraction of products and sums, no approximate division
        assert "div.full" not in code
        assert dynamics is not LIF_DYNAMICS or f"fma.rn.{short}" not in code, "only exp and erf may have them"
        assert dtype == "float64" or not any(f"{op}.rn.f64" in code for op in ("add", "mul")), "single stays single"
    print(dynamics.name, dtype)
