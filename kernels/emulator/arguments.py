"""Arguments of a launch, packed into the parameter block as a driver does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minibert.kernels.emulator.device_memory import AddressSpace
from minibert.kernels.emulator.faults import LaunchError
from minibert.kernels.emulator.program import Program
from minibert.kernels.emulator.types import Array

__all__ = ["pack_arguments"]


def pack_arguments(
    program: Program, args: Sequence[Any], space: AddressSpace, block: Array
) -> None:
    """Write arguments into a parameter block, and make arrays reachable.

    Args:
        program: the kernel.
        args: arrays (pointers; by value where the parameter is a structure of their size), NumPy
            scalars, integers, None for a null pointer.
        space: where arrays are entered.
        block: (parameter_bytes,) uint8, written.

    Raises:
        LaunchError: number, size or kind of the arguments do not fit; a driver would not notice.
    """
    if len(args) != len(program.parameters):
        raise LaunchError(
            f"{program.name} takes {len(program.parameters)} arguments, got {len(args)}"
        )
    block[...] = 0
    for index, (value, (offset, size, kind)) in enumerate(
        zip(args, program.parameters.values(), strict=True)
    ):
        label = f"argument {index} of {program.name}"
        data = _pack(value, size, kind, label, space)
        block[offset : offset + size] = np.frombuffer(data, np.uint8)


def _pack(value: Any, size: int, kind: str, label: str, space: AddressSpace) -> bytes:
    if isinstance(value, np.ndarray):
        if kind == "bytes" and value.nbytes == size:
            return value.tobytes()
        _expect(
            kind in ("u64", "b64", "s64"), label, f"{size} bytes by value (.{kind})", "an array"
        )
        return _integer(space.add(value, label).address, size)
    if value is None:
        _expect(size == 8, label, f"{size} bytes (.{kind})", "a null pointer")
        return bytes(8)
    if isinstance(value, np.generic):
        same = value.dtype.itemsize == size
        floating = value.dtype.kind == "f"
        fits = kind == "bytes" or kind[0] == "b" or (kind[0] == "f") == floating
        _expect(same and fits, label, f"{size} bytes (.{kind})", f"{value.dtype}")
        return value.tobytes()
    if isinstance(value, bool):
        return bytes([value]).ljust(size, b"\0")
    if isinstance(value, int):
        _expect(kind[0] in "usb" and kind != "bytes", label, f".{kind}", f"the integer {value}")
        low, high = -(1 << 8 * size - 1), (1 << 8 * size) - 1
        _expect(low <= value <= high, label, f"from {low} to {high}", value)
        return _integer(value, size)
    if isinstance(value, float):
        _expect(
            kind == "f64", label, f".{kind}; pass a NumPy scalar of that type", "a Python float"
        )
        return np.float64(value).tobytes()
    raise LaunchError(f"{label} must be an array, a NumPy scalar or an integer, got {type(value)}")


def _integer(value: int, size: int) -> bytes:
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def _expect(condition: bool, label: str, rule: str, got: object) -> None:
    if not condition:
        raise LaunchError(f"{label} must be {rule}, got {got}")
