"""Moves between registers, and addresses from one space to another."""

from __future__ import annotations

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.device_memory import ID_SHIFT
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.operands import Name, Vector
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.ports import LOCAL_WINDOW, SHARED_WINDOW
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array, unsigned

_ALL = "b16 u16 s16 b32 u32 s32 f32 b64 u64 s64 f64 pred"
_CLOCKS = ("%clock", "%clock64", "%clock_hi", "%globaltimer", "%globaltimer_lo")
_WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}


@operation("mov", _ALL, kind="move")
def mov(b: Binder, ins: Instruction, kind: str) -> Step:
    """Copy a register, constant, special register or address; pack or unpack a vector."""
    target, source = ins.operands
    if isinstance(source, Vector):
        return _pack(b, ins, kind)
    if isinstance(target, Vector):
        return _unpack(b, ins, kind)
    write = b.writer(target, kind)
    if isinstance(source, Name) and source.name in _CLOCKS:
        return _clock(b, ins, kind)
    if isinstance(source, Name) and source.name == "%envreg0":
        raise UnsupportedError("PTX special register %envreg0 is not known to the emulator")
    if kind == "pred":
        predicate = b.predicate(source)
        return lambda group: write(predicate(), group.alu)
    if isinstance(source, Name) and b.chunk.is_variable(source.name):
        return _address_of(b, ins, kind)
    values = b.source(source, kind)
    return b.elementwise(ins, kind, lambda: values)


def _address_of(b: Binder, ins: Instruction, kind: str) -> Step:
    """Address of a variable: known when the chunk runs, since parameters move."""
    source = ins.operands[1]
    assert isinstance(source, Name)
    write = b.writer(ins.operands[0], kind)
    dtype = TYPES[kind].dtype

    def step(group: Group) -> None:
        address = b.chunk.symbol(source.name) + source.offset
        write(np.full(b.threads, address, dtype), group.alu)

    return step


def _clock(b: Binder, ins: Instruction, kind: str) -> Step:
    """The number of steps so far: monotone, but no measure of time."""
    write = b.writer(ins.operands[0], kind)
    dtype = TYPES[kind].dtype
    return lambda group: write(np.full(b.threads, b.chunk.clock, dtype), group.alu)


def _pack(b: Binder, ins: Instruction, kind: str) -> Step:
    items = b.items(ins.operands[1])
    part = f"b{8 * TYPES[kind].size // len(items)}"
    sources = [b.source(item, part) for item in items]
    buffer = np.empty((b.threads, len(items)), TYPES[part].dtype)
    write = b.writer(ins.operands[0], kind)
    whole = unsigned(TYPES[kind].size)

    def step(group: Group) -> None:
        for place, source in enumerate(sources):
            buffer[:, place] = source
        write(buffer.view(whole).reshape(-1), group.alu)

    return step


def _unpack(b: Binder, ins: Instruction, kind: str) -> Step:
    items = b.items(ins.operands[0])
    part = f"b{8 * TYPES[kind].size // len(items)}"
    source = b.source(ins.operands[1], f"b{8 * TYPES[kind].size}")
    writers = [b.writer(item, part) for item in items]
    dtype = TYPES[part].dtype

    def step(group: Group) -> None:
        parts = np.ascontiguousarray(source).view(dtype).reshape(-1, len(writers)).copy()
        for place, write in enumerate(writers):
            write(parts[:, place], group.alu)

    return step


@operation("cvta", "global const param shared local", mods="to u64 u32", kind="move")
def cvta(b: Binder, ins: Instruction, space: str) -> Step:
    """To a generic address, or with `.to` from it; only shared and local memory have windows."""
    kind = "u32" if "u32" in ins.parts else "u64"
    source = ins.operands[1]
    window = TYPES[kind].dtype.type(_WINDOWS.get(space, 0))
    sign = np.subtract if "to" in ins.parts else np.add
    if isinstance(source, Name) and b.chunk.is_variable(source.name):
        write = b.writer(ins.operands[0], kind)

        def step(group: Group) -> None:
            address = np.full(b.threads, b.chunk.symbol(source.name), TYPES[kind].dtype)
            write(sign(address, window), group.alu)

        return step
    value = b.source(source, kind)
    return b.elementwise(ins, kind, sign, value, np.broadcast_to(window, value.shape))


@operation("isspacep", "global shared local const param", kind="compare")
def isspacep(b: Binder, ins: Instruction, space: str) -> Step:
    """Whether a generic address lies in a space."""
    address = b.source(ins.operands[1], "u64")

    def compute() -> Array:
        near = (address >> np.uint64(ID_SHIFT)) == 0
        shared = near & (address >= SHARED_WINDOW) & (address < LOCAL_WINDOW)
        local = near & (address >= LOCAL_WINDOW)
        parameter = (address >> np.uint64(ID_SHIFT)) == b.chunk.parameter_base >> ID_SHIFT
        if space in ("const", "param"):
            return parameter if space == "param" else np.zeros(address.shape, np.bool_)
        result: Array = {"shared": shared, "local": local, "global": ~(shared | local | parameter)}[
            space
        ]
        return result

    return b.elementwise(ins, "pred", compute)
