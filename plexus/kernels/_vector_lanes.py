"""One row of a sparse matrix times many samples at once, in vector registers.

    out[lane] = Σ_k values[k] x[columns[k], lane],      k = first … last - 1

Numba does not turn this into vector code by itself: it can keep no array in registers. So the loop is written in
LLVM's own vectors, of as many lanes as the tuple `lanes` has members; LLVM cuts them to what the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

__all__ = ["weighted_rows"]


@intrinsic
def weighted_rows(typing: Any, values: Any, columns: Any, first: Any, last: Any, x: Any, out: Any, lanes: Any) -> Any:
    """`out[:] = Σ_k values[k] x[columns[k]]`; x `[column, lane]` and out `[lane]`, both contiguous."""
    number, index = values.dtype, columns.dtype

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(context.get_data_type(number), lanes.count)
        size = context.get_constant(types.intp, lanes.count)

        def pointer(position: int) -> Any:
            kind = signature.args[position]
            return context.make_array(kind)(context, builder, arguments[position]).data

        value_at, column_at, x_at, out_at = (pointer(position) for position in (0, 1, 4, 5))
        begin, end = arguments[2], arguments[3]
        before = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        k, total = builder.phi(begin.type), builder.phi(vector)
        k.add_incoming(begin, before)
        total.add_incoming(ir.Constant(vector, None), before)
        builder.cbranch(builder.icmp_signed("<", k, end), body, done)
        builder.position_at_end(body)
        weight = builder.load(builder.gep(value_at, [k]))
        column = context.cast(builder, builder.load(builder.gep(column_at, [k])), index, types.intp)
        place = builder.gep(x_at, [builder.mul(column, size)])
        row = builder.load(builder.bitcast(place, vector.as_pointer()), align=number.bitwidth // 8)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.Constant(ir.IntType(32), 0))
        spread = builder.shuffle_vector(
            one,
            ir.Constant(vector, ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count),
        )
        added = builder.fadd(total, builder.fmul(spread, row, flags=["contract"]), flags=["contract"])
        k.add_incoming(builder.add(k, ir.Constant(k.type, 1)), body)
        total.add_incoming(added, body)
        builder.branch(head)
        builder.position_at_end(done)
        builder.store(total, builder.bitcast(out_at, vector.as_pointer()), align=number.bitwidth // 8)
        return context.get_dummy_value()

    wanted = types.void(values, columns, types.intp, types.intp, x, out, lanes)
    return wanted, emit
