"""Vectors of sixteen float32 for numba, at raw addresses: what the kernels are written in.

LLVM's own vectoriser decides by cost models and alias checks whether a loop becomes vectors; a kernel written in these
does not depend on them, and runs where vectors are narrower too (LLVM splits them). Addresses instead of arrays keep a
call to a few registers and free of reference counts. No operation here fuses or reorders: ``scaled`` and ``plus`` are
one IEEE operation per lane. ``address`` is that of element 0, ``index`` counts elements, and nothing is checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic, models, register_model

LANES = 16

_INT = ir.IntType(32)
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_UNDEFINED = ir.Constant(_FLOATS, ir.Undefined)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Float32x16")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)  # type: ignore[no-untyped-call]


_vector = _Vector()


def _operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of a function that emits it from (builder, *arguments); one without a result if ``result`` is
    void."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else value

        def declare(typing: Any, *kinds: Any) -> Any:
            return result(*arguments), codegen

        declare.__name__, declare.__doc__ = emit.__name__, emit.__doc__
        names = ["typing", *(f"argument{i}" for i in range(len(arguments)))]  # numba wants the arity
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        declare.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(declare)

    return decorate


def _place(builder: Any, address: Any, index: Any, element: Any, shape: Any = None) -> Any:
    """The pointer to an element, as one to a ``shape`` that starts there."""
    place = builder.gep(builder.inttoptr(address, element.as_pointer()), [index], source_etype=element)
    return builder.bitcast(place, (shape or element).as_pointer())


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


def _spread(builder: Any, value: Any, undefined: Any) -> Any:
    """The vector that holds a scalar in every lane."""
    single = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(single, undefined, _all(0))


def _first(builder: Any, count: Any) -> Any:
    """The mask of the first ``count`` lanes."""
    counts = _spread(builder, builder.trunc(count, _INT), ir.Constant(_INTS, ir.Undefined))
    return builder.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), counts)


def _intrinsic_of_llvm(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _masked_load(builder: Any, place: Any, count: Any, shape: Any, suffix: str, align: int) -> Any:
    mask = _first(builder, count)
    kinds = [shape.as_pointer(), _INT, mask.type, shape]
    function = _intrinsic_of_llvm(builder, f"llvm.masked.load.{suffix}.p0", shape, kinds)
    return builder.call(function, [place, ir.Constant(_INT, align), mask, ir.Constant(shape, None)])


def _masked_store(builder: Any, value: Any, place: Any, mask: Any, suffix: str, align: int) -> None:
    kinds = [value.type, place.type, _INT, mask.type]
    function = _intrinsic_of_llvm(builder, f"llvm.masked.store.{suffix}.p0", ir.VoidType(), kinds)
    builder.call(function, [value, place, ir.Constant(_INT, align), mask])


def _widened(builder: Any, halves: Any) -> Any:
    """Sixteen bfloat16 as float32: the same bits, followed by zeros."""
    return builder.bitcast(builder.shl(builder.zext(halves, _INTS), _all(16)), _FLOATS)


def _narrowed(builder: Any, value: Any) -> tuple[Any, Any]:
    """Sixteen float32 as bfloat16, to nearest even and NaN as 0x7fc0, and the mask of finite values that became
    infinite."""
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _all(0x7FFF)), odd), _all(16))
    rounded = builder.select(builder.fcmp_unordered("uno", value, value), _all(0x7FC0), rounded)
    infinite = builder.icmp_unsigned("==", builder.and_(rounded, _all(0x7FFF)), _all(0x7F80))
    finite = builder.icmp_unsigned("<", builder.and_(bits, _all(0x7FFFFFFF)), _all(0x7F800000))
    return builder.trunc(rounded, _HALVES), builder.and_(infinite, finite)


def _count(builder: Any, mask: Any) -> Any:
    return builder.zext(builder.ctpop(builder.bitcast(mask, ir.IntType(LANES))), ir.IntType(64))


@_operation(types.float32, types.intp, types.intp)
def value(builder: Any, address: Any, index: Any) -> Any:
    """Load one float32."""
    return builder.load(_place(builder, address, index, _FLOAT))


@_operation(types.void, types.intp, types.intp, types.float32)
def put(builder: Any, address: Any, index: Any, one: Any) -> None:
    """Store one float32."""
    builder.store(one, _place(builder, address, index, _FLOAT))


@_operation(types.int64, types.intp, types.intp)
def integer(builder: Any, address: Any, index: Any) -> Any:
    """Load one int64."""
    return builder.load(_place(builder, address, index, ir.IntType(64)))


@_operation(types.void, types.intp, types.intp, types.int64)
def put_integer(builder: Any, address: Any, index: Any, one: Any) -> None:
    """Store one int64."""
    builder.store(one, _place(builder, address, index, ir.IntType(64)))


@_operation(types.float32, types.intp, types.intp)
def rounded(builder: Any, address: Any, index: Any) -> Any:
    """Load one float64, rounded to float32."""
    return builder.fptrunc(builder.load(_place(builder, address, index, ir.DoubleType())), _FLOAT)


@_operation(_vector, types.intp, types.intp)
def load(builder: Any, address: Any, index: Any) -> Any:
    """Load sixteen float32."""
    return builder.load(_place(builder, address, index, _FLOAT, _FLOATS), align=4)


@_operation(_vector, types.intp, types.intp, types.intp)
def load_first(builder: Any, address: Any, index: Any, count: Any) -> Any:
    """Load the first ``count`` float32 (any number: all sixteen, or none), then zeros; nothing behind is touched."""
    return _masked_load(builder, _place(builder, address, index, _FLOAT, _FLOATS), count, _FLOATS, "v16f32", 4)


@_operation(_vector, types.intp, types.intp)
def load_half(builder: Any, address: Any, index: Any) -> Any:
    """Load sixteen bfloat16 as float32."""
    return _widened(builder, builder.load(_place(builder, address, index, ir.IntType(16), _HALVES), align=2))


@_operation(_vector, types.intp, types.intp, types.intp)
def load_half_first(builder: Any, address: Any, index: Any, count: Any) -> Any:
    """Load the first ``count`` bfloat16 as float32, then zeros; nothing behind is touched."""
    place = _place(builder, address, index, ir.IntType(16), _HALVES)
    return _widened(builder, _masked_load(builder, place, count, _HALVES, "v16i16", 2))


@_operation(types.void, types.intp, types.intp, _vector)
def store(builder: Any, address: Any, index: Any, values: Any) -> None:
    """Store sixteen float32."""
    builder.store(values, _place(builder, address, index, _FLOAT, _FLOATS), align=4)


@_operation(types.void, types.intp, types.intp, _vector)
def store_past_cache(builder: Any, address: Any, index: Any, values: Any) -> None:
    """Store sixteen float32 to a place aligned to 64 bytes, without reading the line into the cache first."""
    one = builder.module.add_metadata([ir.Constant(_INT, 1)])
    stored = builder.store(values, _place(builder, address, index, _FLOAT, _FLOATS), align=64)
    stored.set_metadata("nontemporal", one)


@_operation(types.void, types.intp, types.intp, _vector, types.intp)
def store_first(builder: Any, address: Any, index: Any, values: Any, count: Any) -> None:
    """Store the first ``count`` of sixteen float32 only."""
    place = _place(builder, address, index, _FLOAT, _FLOATS)
    _masked_store(builder, values, place, _first(builder, count), "v16f32", 4)


@_operation(types.int64, types.intp, types.intp, _vector)
def store_half(builder: Any, address: Any, index: Any, values: Any) -> Any:
    """Store sixteen values, rounded to bfloat16; returns how many finite ones became infinite."""
    halves, overflowed = _narrowed(builder, values)
    builder.store(halves, _place(builder, address, index, ir.IntType(16), _HALVES), align=2)
    return _count(builder, overflowed)


@_operation(types.int64, types.intp, types.intp, _vector)
def store_half_past_cache(builder: Any, address: Any, index: Any, values: Any) -> Any:
    """Store sixteen values, rounded to bfloat16, to a place aligned to 32 bytes, without reading the line into the
    cache first; returns how many finite ones became infinite."""
    halves, overflowed = _narrowed(builder, values)
    one = builder.module.add_metadata([ir.Constant(_INT, 1)])
    stored = builder.store(halves, _place(builder, address, index, ir.IntType(16), _HALVES), align=32)
    stored.set_metadata("nontemporal", one)
    return _count(builder, overflowed)


@_operation(types.int64, types.intp, types.intp, _vector, types.intp)
def store_half_first(builder: Any, address: Any, index: Any, values: Any, count: Any) -> Any:
    """Store the first ``count`` of sixteen values, rounded to bfloat16; returns how many finite ones became
    infinite."""
    halves, overflowed = _narrowed(builder, values)
    mask = _first(builder, count)
    _masked_store(builder, halves, _place(builder, address, index, ir.IntType(16), _HALVES), mask, "v16i16", 2)
    return _count(builder, builder.and_(overflowed, mask))


@_operation(types.void, types.intp)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line of an address (any, even one that is not mapped) to be brought to the second level."""
    pointer = ir.IntType(8).as_pointer()
    function = _intrinsic_of_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, _INT, _INT, _INT])
    flags = [ir.Constant(_INT, flag) for flag in (0, 2, 1)]  # to read, moderately local, data
    builder.call(function, [builder.inttoptr(address, pointer), *flags])


@_operation(_vector, types.float32, _vector)
def scaled(builder: Any, factor: Any, values: Any) -> Any:
    """The product of every lane and ``factor``."""
    return builder.fmul(_spread(builder, factor, _UNDEFINED), values)


@_operation(_vector, _vector, _vector)
def plus(builder: Any, left: Any, right: Any) -> Any:
    """The sum of two vectors, lane by lane."""
    return builder.fadd(left, right)


def _lanes(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    """A choice of the lanes of two vectors, numbered 0–15 and 16–31."""
    return builder.shuffle_vector(left, right, ir.Constant(_INTS, lanes))


@_operation(_vector, _vector, _vector)
def evens(builder: Any, left: Any, right: Any) -> Any:
    """Every second value of two vectors, one after the other, from the first on."""
    return _lanes(builder, left, right, list(range(0, 2 * LANES, 2)))


@_operation(_vector, _vector, _vector)
def odds(builder: Any, left: Any, right: Any) -> Any:
    """Every second value of two vectors, one after the other, from the second on."""
    return _lanes(builder, left, right, list(range(1, 2 * LANES, 2)))


@_operation(_vector, _vector, _vector)
def zipped_low(builder: Any, left: Any, right: Any) -> Any:
    """The lower halves of two vectors, alternating."""
    return _lanes(builder, left, right, [i // 2 + LANES * (i % 2) for i in range(LANES)])


@_operation(_vector, _vector, _vector)
def zipped_high(builder: Any, left: Any, right: Any) -> Any:
    """The upper halves of two vectors, alternating."""
    return _lanes(builder, left, right, [LANES // 2 + i // 2 + LANES * (i % 2) for i in range(LANES)])
