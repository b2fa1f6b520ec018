"""Atomic operations: `atom` and `red`.

Lanes that meet at one address are served in the order of their number, each seeing what the one
before left; the order on a device is not defined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.op_half import narrow, widen
from minibert.kernels.emulator.op_memory import addresses, port_of
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.ports import GenericPort, GlobalPort, LocalPort, SharedPort
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

_MODS = "global shared cta gpu sys relaxed acquire release acq_rel noftz L2:: u32 s32 b32 u64 s64"
_MODS += " b64 f32 f64 f16 f16x2 bf16 bf16x2 b16 rn"
_BITWISE: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.minimum,
    "max": np.maximum,
}


def _add(kind: str) -> Callable[[Array, Array], Array]:
    if TYPES[kind].kind == "packed" or kind in ("f16", "bf16"):

        def compute(old: Array, value: Array) -> Array:
            halves = [np.ascontiguousarray(v).view(np.uint16) for v in (old, value)]
            total = widen(halves[0], kind) + widen(halves[1], kind)
            return narrow(total, kind).view(old.dtype)

        return compute
    return np.add


def _combine(name: str, kind: str) -> Callable[..., Array]:
    """How old value and operands combine to the new value."""
    if name == "add":
        return _add(kind)
    if name in _BITWISE:
        return _BITWISE[name]
    if name == "exch":
        return lambda old, value: value
    if name == "inc":
        return _increment
    if name == "dec":
        return _decrement
    return _swap


def _increment(old: Array, top: Array) -> Array:
    following: Array = old + old.dtype.type(1)
    return np.where(old >= top, old.dtype.type(0), following)


def _decrement(old: Array, top: Array) -> Array:
    return np.where((old == 0) | (old > top), top, old - old.dtype.type(1))


def _swap(old: Array, compare: Array, value: Array) -> Array:
    return np.where(old == compare, value, old)


@operation("atom", "add min max and or xor exch cas inc dec", mods=_MODS, kind="atomic")
@operation("red", "add min max and or xor inc dec", mods=_MODS, kind="atomic")
def atomic(b: Binder, ins: Instruction, name: str) -> Step:
    """Read, combine and write, as one."""
    types = [part for part in ins.parts if part in TYPES]
    if len(types) != 1:
        raise UnsupportedError(f"PTX opcode {ins.opcode} is not known to the emulator")
    kind = types[0]
    size = TYPES[kind].size
    bits = f"b{8 * size}"
    dtype = TYPES[kind].dtype
    returns = ins.parts[0] == "atom"
    where = addresses(b, ins, 1 if returns else 0)
    first = 2 if returns else 1
    sources = [b.source(operand, bits) for operand in ins.operands[first:]]
    write = b.lane_writer(ins.operands[0], bits) if returns else None
    combine = _combine(name, kind)
    port = port_of(b, ins)

    def apply(group: Group, address: Array, target: GlobalPort | SharedPort, at: Array) -> None:
        values = [pick(source, group.lanes).view(dtype) for source in sources]
        view, index = place(ins, group, address, target, size)
        old = _serve(view, index, values, dtype, combine)
        at[...] = old.view(at.dtype)

    def step(group: Group) -> None:
        address = where(group)
        old = np.empty(address.shape, TYPES[bits].dtype)
        targets: list[tuple[Group, Array, Array, GlobalPort | SharedPort | LocalPort]]
        if isinstance(port, GenericPort):
            targets = port.split(group, address)
        else:
            targets = [(group, np.ones(address.shape, np.bool_), address, port)]
        for part, inside, there, target in targets:
            if isinstance(target, LocalPort):
                target.report("out of bounds", "an atomic on local memory", ins, part, 0)
                return
            seen = np.empty(there.shape, old.dtype)
            apply(part, there, target, seen)
            old[inside] = seen
        if write is not None:
            write(old, group.lanes)

    return step


def place(
    ins: Instruction, group: Group, address: Array, port: GlobalPort | SharedPort, size: int
) -> tuple[Array, Array]:
    """Check the addresses of an atomic; the memory as units, and the index of each lane."""
    chunk = port.chunk
    if isinstance(port, SharedPort):
        where = port.place(ins, group, address, size)
        if chunk.shadow is not None:
            chunk.shadow.check_initialised(ins, group, where, size)
            chunk.shadow.write(ins, group, where, size, None, atomic=True)
        if chunk.counters is not None:
            chunk.counters.shared_access(ins, group, address, size, "atomic")
        return port.views[size], where // size
    found = port.reach(ins, group, address, size)
    if isinstance(found, list):
        raise UnsupportedError(f"{ins.text}: lanes of one atomic reach several arrays")
    allocation, index = found
    if not allocation.writable:
        detail = f"{allocation.label} is read-only on the host"
        port.report("write to read-only memory", detail, ins, group, 0)
    if chunk.counters is not None:
        chunk.counters.global_access(ins, group, address, size, "atomic")
    if allocation.owner.written is not None and chunk.checks:
        port.check_written(ins, group, allocation, index, size)
    if chunk.global_shadow is not None:
        chunk.global_shadow.write(ins, group, allocation, index, size, None)
    return allocation.view(size), index


def _serve(
    view: Array,
    index: Array,
    values: list[Array],
    dtype: np.dtype[Any],
    combine: Callable[..., Array],
) -> Array:
    """Serve the lanes, one round for the first at each address, one for the second, ..."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    position = np.arange(len(ordered))
    rank = position - np.maximum.accumulate(np.where(starts, position, 0))
    typed = view.view(dtype)
    old = np.empty(index.shape, dtype)
    by_rank = order[np.argsort(rank, kind="stable")]
    edges = np.cumsum(np.bincount(rank))
    begin = 0
    for end in edges:
        lanes = by_rank[begin:end]
        here = index[lanes]
        before = typed[here]
        old[lanes] = before
        typed[here] = combine(before, *(value[lanes] for value in values))
        begin = end
    return old
