"""Matrix multiply-accumulate of a warp: `mma.sync` and its sparse form.

Lane l holds, with g = l >> 2 and t = l & 3: of A rows g and g + 8, of B column g, of C and D rows g
and g + 8, columns 2t and 2t + 1. A register of 32 bits holds neighbours along K, so the registers
of a warp, read as (8, values), are an 8-row block of a matrix already.

Products and sums of float types are taken in float64 and rounded once; a device rounds oftener, in
an order that is not documented.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import WARP, Group
from minibert.kernels.emulator.op_half import narrow
from minibert.kernels.emulator.op_warp import together
from minibert.kernels.emulator.operands import Immediate, Operand
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.rounding import bf16_to_f32
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

__all__ = ["left_matrix", "operand_types", "right_matrix"]

_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8}
_FLOAT_MODS = "sync aligned row col f16 bf16 tf32 f32"
_INT_MODS = "sync aligned row col satfinite s8 u8 s32"


def _values(registers: list[Array], kind: str) -> list[Array]:
    """Registers of a warp as blocks (warps, 8, values of 4 lanes)."""
    blocks = []
    for register in registers:
        bits = np.ascontiguousarray(register)
        if kind == "f16":
            block = bits.view(np.float16).astype(np.float64)
        elif kind == "bf16":
            block = bf16_to_f32(bits.view(np.uint16)).astype(np.float64)
        elif kind == "tf32":
            block = (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
        else:
            block = bits.view(TYPES[kind].dtype).astype(np.float32)
        blocks.append(block.reshape(-1, 8, 4 * 32 // _BITS[kind]))
    return blocks


def left_matrix(registers: list[Array], kind: str, rows: int) -> Array:
    """A as (warps, rows, K): row blocks first, then along K."""
    blocks = _values(registers, kind)
    high = rows // 8
    strips = [np.concatenate(blocks[i::high], axis=2) for i in range(high)]
    return np.concatenate(strips, axis=1)


def right_matrix(registers: list[Array], kind: str) -> Array:
    """B as (warps, K, 8)."""
    return np.concatenate(_values(registers, kind), axis=2).transpose(0, 2, 1)


class _Accumulator:
    """C and D: reads C as (warps, rows, 8), writes D."""

    def __init__(self, b: Binder, ins: Instruction, kind: str, index: int) -> None:
        self.kind = kind
        bits = kind if kind != "f16" else "b32"
        self.sources = [b.source(item, bits) for item in b.items(ins.operands[index])]
        self.writers = [b.writer(item, bits) for item in b.items(ins.operands[0])]

    def add_to(self, product: Array) -> Array:
        """`product + C`, in the format of the product."""
        if self.kind == "f16":
            rows = [
                np.ascontiguousarray(s).view(np.float16).reshape(-1, 8, 8) for s in self.sources
            ]
            return product + np.concatenate(rows, axis=1)
        for place, source in enumerate(self.sources):
            block = slice(8 * (place // 2), 8 * (place // 2) + 8)
            product[:, block, place % 2 :: 2] += source.reshape(-1, 8, 4)
        return product

    def write(self, value: Array, mask: Array | None) -> None:
        """Round and write D."""
        for place, write in enumerate(self.writers):
            if self.kind == "f16":
                block = np.ascontiguousarray(value[:, 8 * place : 8 * place + 8, :])
                write(narrow(block.reshape(-1), "f16").view(np.uint32), mask)
            else:
                block = value[:, 8 * (place // 2) : 8 * (place // 2) + 8, place % 2 :: 2]
                write(block.reshape(-1), mask)


def _registers(b: Binder, operand: Operand) -> list[Array]:
    return [b.source(item, "b32") for item in b.items(operand)]


def _shape(name: str) -> tuple[int, int, int]:
    m, rest = name[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def operand_types(ins: Instruction) -> tuple[str, str, str, str]:
    """Types of D, A, B, C."""
    types = [part for part in ins.parts if part in TYPES or part == "tf32"]
    if len(types) != 4:
        raise UnsupportedError(f"PTX opcode {ins.opcode} is not known to the emulator")
    return types[0], types[1], types[2], types[3]


@operation("mma", "m16n8k16", "f16", mods=_FLOAT_MODS, kind="tensor", since=80)
@operation("mma", "m16n8k8", "f16", mods=_FLOAT_MODS, kind="tensor", since=75)
@operation("mma", "m16n8k16", "bf16", mods=_FLOAT_MODS, kind="tensor", since=80)
@operation("mma", "m16n8k8", "bf16", mods=_FLOAT_MODS, kind="tensor", since=80)
@operation("mma", "m16n8k8", "tf32", mods=_FLOAT_MODS, kind="tensor", since=80)
@operation("mma", "m16n8k4", "tf32", mods=_FLOAT_MODS, kind="tensor", since=80)
def mma_float(b: Binder, ins: Instruction, shape: str, kind: str) -> Step:
    """Multiply and accumulate floats."""
    _expect(b, ins, shape, kind)
    left, right = _registers(b, ins.operands[1]), _registers(b, ins.operands[2])
    accumulator = _Accumulator(b, ins, operand_types(ins)[0], 3)

    def work(group: Group) -> None:
        product = np.matmul(left_matrix(left, kind, 16), right_matrix(right, kind))
        accumulator.write(accumulator.add_to(product), group.alu)

    return together(b, ins, None, work)


def _expect(b: Binder, ins: Instruction, shape: str, kind: str) -> None:
    """The types must be those of the entry, and the registers as many as the shape needs."""
    d, a, right, c = operand_types(ins)
    accumulators = {"f16": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",)}.get(kind, ("s32",))
    m, n, k = _shape(shape)
    if ((a, right) != (kind, kind) and _BITS[kind] != 8) or d != c or d not in accumulators:
        raise UnsupportedError(f"PTX opcode {ins.opcode} is not known to the emulator")
    each = 32 // _BITS[kind]
    wanted = [
        m * n // WARP // (2 if d == "f16" else 1),
        m * k // WARP // each,
        n * k // WARP // each,
    ]
    found = [len(b.items(operand)) for operand in ins.operands[:3]]
    if found != wanted:
        raise UnsupportedError(f"PTX {ins.text}: registers of D, A, B must be {wanted}")


@operation("mma", "m16n8k32 m16n8k16", "s8", mods=_INT_MODS, kind="tensor", since=80)
@operation("mma", "m8n8k16", "s8", mods=_INT_MODS, kind="tensor", since=75)
@operation("mma", "m16n8k32 m16n8k16", "u8", mods=_INT_MODS, kind="tensor", since=80)
@operation("mma", "m8n8k16", "u8", mods=_INT_MODS, kind="tensor", since=75)
def mma_int(b: Binder, ins: Instruction, shape: str, kind: str) -> Step:
    """Multiply and accumulate 8-bit integers, exactly; wrap, or saturate at the end."""
    if any(part in ("s8", "u8") and part != kind for part in ins.parts):
        raise UnsupportedError(f"PTX opcode {ins.opcode} mixes signs, which is not known")
    _expect(b, ins, shape, kind)
    rows = _shape(shape)[0]
    left, right = _registers(b, ins.operands[1]), _registers(b, ins.operands[2])
    accumulator = _Accumulator(b, ins, "s32", 3)
    saturate = "satfinite" in ins.parts

    def work(group: Group) -> None:
        # 32 products of at most 2^16 stay below 2^24: float32 holds their sums.
        product = np.matmul(left_matrix(left, kind, rows), right_matrix(right, kind))
        total = accumulator.add_to(product.astype(np.int64))
        if saturate:
            total = np.clip(total, -(1 << 31), (1 << 31) - 1)
        accumulator.write(total.astype(np.int32), group.alu)

    return together(b, ins, None, work)


@operation("mma", "sp", "m16n8k32", "f16 bf16", mods=_FLOAT_MODS, kind="tensor", since=80)
@operation(
    "mma", "sp::ordered_metadata", "m16n8k32", "f16 bf16", mods=_FLOAT_MODS, kind="tensor", since=80
)
def mma_sparse(b: Binder, ins: Instruction, _: str, shape: str, kind: str) -> Step:
    """Multiply and accumulate; of every four neighbours of A along K two are stored.

    Two lanes of each quad, chosen by the selector, hold for 16 of the 32 columns where the kept
    values of rows g (lower half) and g + 8 (upper half) belong: two bits for each.
    """
    left, right = _registers(b, ins.operands[1]), _registers(b, ins.operands[2])
    accumulator = _Accumulator(b, ins, operand_types(ins)[0], 3)
    metadata = b.source(ins.operands[4], "u32")
    selector = ins.operands[5]
    if not isinstance(selector, Immediate) or selector.value not in (0, 1):
        raise UnsupportedError(f"PTX {ins.text}: the selector must be 0 or 1")
    first = 2 * selector.value

    def work(group: Group) -> None:
        kept = left_matrix(left, kind, 16)
        dense = np.zeros((len(kept), 16, 32))
        np.put_along_axis(dense, _positions(metadata, first), kept, axis=2)
        product = np.matmul(dense, right_matrix(right, kind))
        accumulator.write(accumulator.add_to(product), group.alu)

    return together(b, ins, None, work)


def _positions(metadata: Array, first: int) -> Array:
    """Column of each kept value: (warps, 16, 16)."""
    quads = metadata.reshape(-1, 8, 4)[:, :, first : first + 2]
    halves = [quads & np.uint32(0xFFFF), quads >> np.uint32(16)]
    words = np.concatenate(halves, axis=1)  # (warps, 16 rows, 2 halves of K)
    shifts = np.arange(0, 16, 2, dtype=np.uint32)
    inside = (words[..., None] >> shifts) & np.uint32(3)  # (warps, 16, 2, 8 values)
    group = np.arange(16).reshape(2, 8) // 2 * 4
    result: Array = (inside.astype(np.int64) + group).reshape(len(words), 16, 16)
    return result
