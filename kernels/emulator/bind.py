"""Turns the instructions of a kernel into steps: functions over the arrays of one chunk.

Registers are arrays over all threads, made here once; a step holds the typed views of its operands,
so that running it is a few NumPy calls and no lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.operands import Address, Immediate, Name, Operand, Vector
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import TYPES, Array, unsigned

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["Binder", "Step", "Writer"]

Step: TypeAlias = Callable[[Group], Any]
Writer: TypeAlias = Callable[[Array, "Array | None"], None]


class Binder:
    """Makes the steps of one chunk."""

    def __init__(self, chunk: Chunk) -> None:
        """Make the registers."""
        self.chunk = chunk
        self.program = chunk.program
        self.threads = chunk.threads.geometry.threads
        self.registers: dict[str, Array] = {}
        self.slots: dict[tuple[int, int], Array] = {}
        self.views: dict[tuple[str, str], Array] = {}

    def register(self, name: str) -> Array:
        """The bits of a register."""
        if name not in self.registers:
            kind = self.program.registers.get(name)
            if kind is None or kind not in TYPES:
                raise UnsupportedError(f"PTX register {name} of type {kind} is not known")
            dtype = np.dtype(np.bool_) if kind == "pred" else unsigned(TYPES[kind].size)
            slot = self.program.slots[name]
            if slot not in self.slots:
                self.slots[slot] = np.zeros(self.threads, dtype)
            self.registers[name] = self.slots[slot]
        return self.registers[name]

    def is_register(self, name: str) -> bool:
        """Whether the name is a register of the kernel."""
        return name in self.program.registers

    def source(self, operand: Operand, type_name: str) -> Array:
        """An operand as an array over the threads, read as a type.

        The array is a view of the register: it changes as the register does.
        """
        kind = TYPES[type_name]
        if isinstance(operand, Immediate):
            return np.broadcast_to(_constant(operand, type_name), (self.threads,))
        if not isinstance(operand, Name):
            raise UnsupportedError(f"PTX operand {operand} where a value of .{type_name} belongs")
        if self.is_register(operand.name):
            return self._view(operand.name, kind.dtype)
        special = self.chunk.special(operand.name)
        if special is None:
            bits = self.chunk.symbol(operand.name) + operand.offset
            special = np.broadcast_to(np.uint64(bits), (self.threads,))
        if special.dtype.itemsize == kind.size:
            return special.view(kind.dtype)
        if special.strides == (0,):
            return special.astype(kind.dtype)
        raise UnsupportedError(f"PTX operand {operand.name} read as .{type_name}")

    def _view(self, name: str, dtype: np.dtype[Any]) -> Array:
        key = (name, dtype.str)
        if key not in self.views:
            bits = self.register(name)
            if (dtype == np.bool_) != (bits.dtype == np.bool_):
                raise UnsupportedError(f"PTX register {name} used as {dtype}")
            narrow = bits.dtype.itemsize // dtype.itemsize
            if narrow == 0:
                raise UnsupportedError(f"PTX register {name} is too narrow for {dtype}")
            self.views[key] = bits.view(dtype)[::narrow] if narrow > 1 else bits.view(dtype)
        return self.views[key]

    def is_predicate(self, operand: Operand) -> bool:
        """Whether the operand is a predicate register."""
        return isinstance(operand, Name) and self.program.registers.get(operand.name) == "pred"

    def predicate(self, operand: Operand) -> Callable[[], Array]:
        """A predicate operand, negated if it says so."""
        assert isinstance(operand, Name | Immediate)
        if isinstance(operand, Immediate):
            constant = np.full(self.threads, bool(operand.value))
            return lambda: constant
        values = self._view(operand.name, np.dtype(np.bool_))
        if operand.negated:
            return lambda: ~values
        return lambda: values

    def target(self, operand: Operand | None, type_name: str) -> Array | None:
        """The destination register as a writable view, if its width is that of the type."""
        if not isinstance(operand, Name) or not self.is_register(operand.name):
            return None
        dtype = TYPES[type_name].dtype
        bits = self.register(operand.name)
        return self._view(operand.name, dtype) if bits.dtype.itemsize == dtype.itemsize else None

    def writer(self, operand: Operand | None, type_name: str) -> Writer:
        """A function that writes values to a register, widening them to its width.

        The values are over all threads; the mask says which of them count.
        """
        if operand is None or (isinstance(operand, Name) and operand.name == "_"):
            return lambda values, mask: None
        if not isinstance(operand, Name):
            raise UnsupportedError(f"PTX operand {operand} where a destination belongs")
        kind = TYPES[type_name]
        target = self.target(operand, type_name)
        if target is None:
            bits = self.register(operand.name)
            signed = np.dtype(f"int{8 * bits.dtype.itemsize}")
            target = bits.view(signed) if kind.is_signed else bits

        def write(values: Array, mask: Array | None) -> None:
            if values.dtype != target.dtype:
                values = values.astype(target.dtype)
            if mask is None:
                target[...] = values
            else:
                np.putmask(target, mask, values)

        return write

    def lane_writer(self, operand: Operand | None, type_name: str) -> Writer:
        """As `writer`, for values of the lanes of a group only; the second argument names them."""
        if operand is None or (isinstance(operand, Name) and operand.name == "_"):
            return lambda values, lanes: None
        assert isinstance(operand, Name)
        kind = TYPES[type_name]
        bits = self.register(operand.name)
        typed = kind.dtype if kind.dtype.itemsize == bits.dtype.itemsize else None
        wide = np.dtype(f"int{8 * bits.dtype.itemsize}") if kind.is_signed else bits.dtype
        target = bits.view(typed) if typed is not None else bits.view(wide)

        def write(values: Array, lanes: Array | None) -> None:
            if lanes is None:
                target[...] = values
            else:
                target[lanes] = values

        return write

    def elementwise(
        self,
        instruction: Instruction,
        type_name: str,
        compute: Callable[..., Array],
        *sources: Array,
    ) -> Step:
        """A step that writes `compute(*sources)` to the first operand."""
        target = self.target(instruction.operands[0], type_name)
        if isinstance(compute, np.ufunc) and target is not None:
            function, out = compute, target

            def direct(group: Group) -> None:
                if group.alu is None:
                    function(*sources, out=out)
                else:
                    np.putmask(out, group.alu, function(*sources))

            return direct
        write = self.writer(instruction.operands[0], type_name)
        return lambda group: write(compute(*sources), group.alu)

    def address(self, operand: Operand) -> tuple[Array, int]:
        """`[base + offset]` as an array over the threads and a constant."""
        if not isinstance(operand, Address):
            raise UnsupportedError(f"PTX operand {operand} where an address belongs")
        if operand.base is None:
            return np.broadcast_to(np.uint64(operand.offset), (self.threads,)), 0
        if self.is_register(operand.base):
            return self.register(operand.base), operand.offset
        symbol = np.uint64(self.chunk.symbol(operand.base) + operand.offset)
        return np.broadcast_to(symbol, (self.threads,)), 0

    @staticmethod
    def items(operand: Operand) -> tuple[Operand, ...]:
        """The registers of a vector, or the one operand."""
        return operand.items if isinstance(operand, Vector) else (operand,)


def _constant(operand: Immediate, type_name: str) -> Any:
    """An immediate as a NumPy scalar of a type."""
    kind = TYPES[type_name]
    if kind.dtype.kind == "b":
        return np.bool_(operand.value != 0)
    if kind.dtype in (np.float32, np.float64):
        if operand.float_size == kind.size:
            return np.array(operand.value, unsigned(kind.size)).view(kind.dtype)[()]
        return kind.dtype.type(operand.as_float())
    if kind.kind == "bits" and operand.float_size > kind.size:
        narrow = np.float32(operand.as_float())
        return narrow.view(np.uint32)
    bits = operand.value % (1 << 8 * kind.size)
    return np.array(bits, unsigned(kind.size)).view(kind.dtype)[()]
