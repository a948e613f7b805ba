"""One row of a sparse matrix times many samples, or many places of one sample, at once, in vector registers.

    weighted_rows     out[lane]      = Σ_k values[k] x[columns[k], lane]             k = first … last - 1
    weighted_slices   out[at + lane] = Σ_k values[k] x[begin + offsets[k] + lane]

Numba does not turn this into vector code by itself: it can keep no array in registers. So the loop is written in
LLVM's own vectors, of as many lanes as the tuple `lanes` has members; LLVM cuts them to what the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

__all__ = ["weighted_rows", "weighted_slices"]


@intrinsic
def weighted_rows(typing: Any, values: Any, columns: Any, first: Any, last: Any, x: Any, out: Any, lanes: Any) -> Any:
    """`out[:] = Σ_k values[k] x[columns[k]]`; x `[column, lane]` and out `[lane]`, both contiguous."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values_at, columns_at, x_at, out_at = (_data(context, builder, signature, arguments, i) for i in (0, 1, 4, 5))
        size = context.get_constant(types.intp, lanes.count)

        def place(k: Any) -> Any:
            column = context.cast(builder, builder.load(builder.gep(columns_at, [k])), columns.dtype, types.intp)
            return builder.gep(x_at, [builder.mul(column, size)])

        _weighted(context, builder, values.dtype, lanes.count, arguments[2], arguments[3], values_at, place, out_at)
        return context.get_dummy_value()

    return types.void(values, columns, types.intp, types.intp, x, out, lanes), emit


@intrinsic
def weighted_slices(
    typing: Any,
    values: Any,
    offsets: Any,
    first: Any,
    last: Any,
    x: Any,
    begin: Any,
    out: Any,
    at: Any,
    lanes: Any,
) -> Any:
    """`out[at : at + lanes] = Σ_k values[k] x[begin + offsets[k] : … + lanes]`; x and out contiguous vectors."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values_at, offsets_at, x_at, out_at = (_data(context, builder, signature, arguments, i) for i in (0, 1, 4, 6))
        begin_at, end_at = builder.gep(x_at, [arguments[5]]), builder.gep(out_at, [arguments[7]])

        def place(k: Any) -> Any:
            offset = context.cast(builder, builder.load(builder.gep(offsets_at, [k])), offsets.dtype, types.intp)
            return builder.gep(begin_at, [offset])

        _weighted(context, builder, values.dtype, lanes.count, arguments[2], arguments[3], values_at, place, end_at)
        return context.get_dummy_value()

    return types.void(values, offsets, types.intp, types.intp, x, types.intp, out, types.intp, lanes), emit


def _data(context: Any, builder: Any, signature: Any, arguments: Any, position: int) -> Any:
    """Where the numbers of an array argument begin."""
    return context.make_array(signature.args[position])(context, builder, arguments[position]).data


def _weighted(
    context: Any, builder: Any, number: Any, lanes: int, first: Any, last: Any, values_at: Any, place: Any, out_at: Any
) -> None:
    """Write the loop: for each k add `values[k]` times the vector at `place(k)`; store the sum at `out_at`."""
    vector = ir.VectorType(context.get_data_type(number), lanes)
    empty, align = ir.Constant(vector, ir.Undefined), number.bitwidth // 8
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    k, total = builder.phi(first.type), builder.phi(vector)
    k.add_incoming(first, before)
    total.add_incoming(ir.Constant(vector, None), before)
    builder.cbranch(builder.icmp_signed("<", k, last), body, done)
    builder.position_at_end(body)
    weight = builder.load(builder.gep(values_at, [k]))
    row = builder.load(builder.bitcast(place(k), vector.as_pointer()), align=align)
    one = builder.insert_element(empty, weight, ir.Constant(ir.IntType(32), 0))
    spread = builder.shuffle_vector(one, empty, everywhere)
    added = builder.fadd(total, builder.fmul(spread, row, flags=["contract"]), flags=["contract"])
    k.add_incoming(builder.add(k, ir.Constant(k.type, 1)), body)
    total.add_incoming(added, body)
    builder.branch(head)
    builder.position_at_end(done)
    builder.store(total, builder.bitcast(out_at, vector.as_pointer()), align=align)
