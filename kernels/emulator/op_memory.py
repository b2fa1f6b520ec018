"""Loads, stores and prefetches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.operands import Address
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.ports import GenericPort, GlobalPort, LocalPort, SharedPort
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array, unsigned

__all__ = ["access_bytes", "addresses", "port_of"]

_TYPES = "u8 s8 b8 u16 s16 b16 u32 s32 b32 u64 s64 b64 f32 f64"
_HINTS = "v2 v4 ca cg cs lu cv nc wb wt volatile relaxed weak acquire release cta gpu sys"
_HINTS += " L1:: L2:: unified mmio"
_SPACES = ("global", "shared", "local", "param", "const")


def access_bytes(ins: Instruction) -> int:
    """Bytes of a lane's access."""
    kind = next((TYPES[part] for part in ins.parts if part in TYPES), None)
    if kind is None:
        raise UnsupportedError(f"PTX opcode {ins.opcode} has no type")
    return kind.size * _count(ins)


def _count(ins: Instruction) -> int:
    return 2 if "v2" in ins.parts else 4 if "v4" in ins.parts else 1


def port_of(b: Binder, ins: Instruction) -> GlobalPort | SharedPort | LocalPort | GenericPort:
    """The memory that an instruction names."""
    chunk = b.chunk
    space = next((p.partition("::")[0] for p in ins.parts if p.startswith(_SPACES)), "")
    if space == "param":
        operand = next(o for o in ins.operands if isinstance(o, Address))
        return chunk.local if operand.base in b.program.local else chunk.memory
    if space == "":
        return chunk.generic
    if space == "shared":
        return chunk.shared
    return chunk.local if space == "local" else chunk.memory


def addresses(b: Binder, ins: Instruction, index: int) -> Callable[[Group], Array]:
    """Addresses of the lanes of a group, of the address operand at an index."""
    base, offset = b.address(ins.operands[index])
    moved = base.dtype.type(offset % (1 << 8 * base.dtype.itemsize))

    def compute(group: Group) -> Array:
        address = pick(base, group.lanes)
        return address + moved if offset else address

    return compute


@operation("ld", "global shared local param const", _TYPES, mods=_HINTS, kind="load")
@operation("ld", _TYPES, mods=_HINTS, kind="load")
def load(b: Binder, ins: Instruction, *choice: str) -> Step:
    """Read one value or a vector of them."""
    kind, size = choice[-1], access_bytes(ins)
    registers = b.items(ins.operands[0])
    if uniform := _parameter(b, ins, kind):
        return uniform
    port = port_of(b, ins)
    where = addresses(b, ins, 1)
    writers = [b.lane_writer(register, kind) for register in registers]
    dtype = TYPES[kind].dtype

    def step(group: Group) -> None:
        data = port.load(ins, group, where(group), size)
        values = data.view(dtype).reshape(-1, len(writers))
        for place, write in enumerate(writers):
            write(values[:, place], group.lanes)

    return step


def _parameter(b: Binder, ins: Instruction, kind: str) -> Step | None:
    """A kernel parameter at a fixed place: one value for all threads."""
    operand = ins.operands[1]
    if ins.parts[1] != "param" or not isinstance(operand, Address):
        return None
    if operand.base not in b.program.parameters:
        return None
    start = b.program.parameters[operand.base][0] + operand.offset
    writers = [b.writer(register, kind) for register in b.items(ins.operands[0])]
    dtype = TYPES[kind].dtype
    end = start + dtype.itemsize * len(writers)
    if start < 0 or end > b.chunk.parameters.size:
        raise UnsupportedError(f"PTX {ins.text} reads beyond the parameters")

    def step(group: Group) -> None:
        values = b.chunk.parameters[start:end].view(dtype)
        for value, write in zip(values, writers, strict=True):
            write(np.broadcast_to(value, (b.threads,)), group.alu)

    return step


@operation("st", "global shared local param", _TYPES, mods=_HINTS, kind="store")
@operation("st", _TYPES, mods=_HINTS, kind="store")
def store(b: Binder, ins: Instruction, *choice: str) -> Step:
    """Write one value or a vector of them."""
    kind, size = choice[-1], access_bytes(ins)
    bits = f"b{8 * TYPES[kind].size}"
    sources = [b.source(item, bits) for item in b.items(ins.operands[1])]
    port = port_of(b, ins)
    where = addresses(b, ins, 0)
    unit = unsigned(min(size, 8))

    def step(group: Group) -> None:
        lanes = group.lanes
        count = b.threads if lanes is None else len(lanes)
        buffer = np.empty((count, len(sources)), TYPES[bits].dtype)
        for place, source in enumerate(sources):
            buffer[:, place] = pick(source, lanes)
        data = buffer.view(unit)
        port.store(ins, group, where(group), size, data if size > 8 else data.reshape(-1))

    return step


@operation("prefetch", mods="global local L1 L2 evict_last evict_normal L2::", kind="control")
@operation("prefetchu", mods="L1", kind="control")
@operation("applypriority", mods="global L2::", kind="control")
@operation("discard", mods="global L2 L2::", kind="control")
@operation("cp", "async", "bulk", "prefetch", mods="L2 global L2::", kind="control", since=90)
def prefetch(b: Binder, ins: Instruction, *_: str) -> Step:
    """A hint: nothing to do."""
    return lambda group: None


@operation("createpolicy", mods="fractional range global b64 L2::", kind="move", since=80)
def createpolicy(b: Binder, ins: Instruction) -> Step:
    """A cache policy: any value will do."""
    return b.elementwise(ins, "b64", lambda: np.zeros(b.threads, np.uint64))
