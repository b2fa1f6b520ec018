"""The fundamental types of PTX, and the NumPy types that hold them.

A register is kept as unsigned bits of its width; a typed view of the same memory is taken where an
instruction reads it as float or signed. bfloat16 has no NumPy type: it is a `uint16` that
`rounding.py` widens and narrows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["TYPES", "Array", "PtxType", "unsigned"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PtxType:
    """One type.

    Attributes:
        name: as PTX spells it.
        dtype: what a value is computed in, or its bits where NumPy has no such type.
        size: bytes in memory.
        kind: `int`, `uint`, `bits`, `float`, `pred` or `packed` (two halves in 32 bits).
    """

    name: str
    dtype: np.dtype[Any]
    size: int
    kind: str

    @property
    def is_float(self) -> bool:
        """Whether values are floating point, alone or packed."""
        return self.kind in ("float", "packed")

    @property
    def is_signed(self) -> bool:
        """Whether a widening copies the sign."""
        return self.kind == "int"


def _make() -> dict[str, PtxType]:
    types = {"pred": PtxType("pred", np.dtype(np.bool_), 1, "pred")}
    for bits in (8, 16, 32, 64):
        for letter, kind in (("u", "uint"), ("s", "int"), ("b", "bits")):
            whole = np.dtype(f"{'int' if letter == 's' else 'uint'}{bits}")
            types[f"{letter}{bits}"] = PtxType(f"{letter}{bits}", whole, bits // 8, kind)
    for name, dtype, size, kind in (
        ("f16", "float16", 2, "float"),
        ("bf16", "uint16", 2, "float"),
        ("f32", "float32", 4, "float"),
        ("tf32", "uint32", 4, "float"),
        ("f64", "float64", 8, "float"),
        ("f16x2", "uint32", 4, "packed"),
        ("bf16x2", "uint32", 4, "packed"),
    ):
        types[name] = PtxType(name, np.dtype(dtype), size, kind)
    return types


TYPES = _make()


def unsigned(size: int) -> np.dtype[Any]:
    """The unsigned integer of `size` bytes."""
    return np.dtype(f"uint{8 * size}")
