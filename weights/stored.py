"""How quantised matrices stand in a safetensors file.

| bits | weight_q | weight_scale |
|---|---|---|
| 8 | I8 (rows, columns), -127..127 | F32 (rows,) |
| 4 | U8 (rows, ceil(columns / 2)), value + 8, even column in the low bits | F32 (rows, groups) |

A linear layer called `x` whose inputs have a fixed range has `x.input_range` besides: F32 (2,), low
and high. It is a range and not a scale, because devices divide it into 127 or 255 steps.

A matrix called `x.weight` in the original is the pair `x.weight_q`, `x.weight_scale`. Scales of 8
bits have 16 significant bits, so that every product weight_q * weight_scale, and 127 times the
scale, is exact in float32: whoever quantises the dequantised matrix again finds the same integers
and the same scale, bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import WeightsError
from minibert.weights.tensors import TensorEntry

Float32 = NDArray[np.float32]
GROUP_COLUMNS = 64
"""Columns that share a scale at 4 bits: 4.5 bits a weight."""

_SCALE_BITS = 16
_NARROWEST, _WIDEST = 1e-30, 1e38  # steps and their inverse are normal float32


def round_scale(scale: NDArray[Any]) -> Float32:
    """Round scales up or down to 16 significant bits."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    rounded = np.rint(mantissa * 2.0**_SCALE_BITS) * 2.0**-_SCALE_BITS
    return np.ldexp(rounded, exponent).astype(np.float32)


def dequantize(weight_q: NDArray[np.int8], weight_scale: Float32) -> Float32:
    """weight_q * weight_scale, one scale a row: (rows, columns) float32, exact."""
    return np.multiply(weight_q, weight_scale[:, None], dtype=np.float32)


def read_input_range(name: str, entry: TensorEntry) -> tuple[float, float]:
    """A layer's fixed input range.

    Args:
        name: for messages.
        entry: F32 (2,): low and high, low <= 0 <= high.

    Raises:
        WeightsError: another dtype or shape, or no such range.
    """
    if entry.dtype != "F32" or entry.data.shape != (2,):
        raise WeightsError(
            f"{entry.file}: {name} must be F32 (2,), got {entry.dtype} {entry.data.shape}"
        )
    low, high = (float(value) for value in entry.data)
    if not (low <= 0.0 <= high and _NARROWEST <= high - low <= _WIDEST):  # refuses NaN, too
        raise WeightsError(
            f"{entry.file}: {name} must be low <= 0 <= high and {_NARROWEST:g} to {_WIDEST:g} "
            f"wide, got {low:g} and {high:g}"
        )
    return low, high


def check_presence(where: object, name: str, found: bool, expected: bool, layer: str) -> None:
    """Refuse an input range that config.json does not ask for, and the lack of one that it does.

    Raises:
        WeightsError: `found` is not `expected`.
    """
    if found != expected:
        rule, state = ("exist", "missing") if expected else ("not exist", "there")
        raise WeightsError(
            f"{where}: tensor {name} must {rule} for {layer} by static, dynamic_layers and "
            f"float_layers of quantization_config in config.json, it is {state}"
        )


def num_groups(columns: int) -> int:
    """Scales of a row at 4 bits."""
    return -(-columns // GROUP_COLUMNS)


def pack_int4(weight_q: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two values of -8..7 to a byte: (rows, columns) to (rows, ceil(columns / 2))."""
    nibbles = (weight_q.astype(np.int16) + 8).astype(np.uint8)
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)), constant_values=8)
    packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return packed.astype(np.uint8)


def unpack_int4(packed: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """The inverse of `pack_int4`."""
    values = np.empty((packed.shape[0], 2 * packed.shape[1]), np.int8)
    values[:, 0::2] = packed & 15
    values[:, 1::2] = packed >> 4
    values -= 8
    return values[:, :columns]


def dequantize_int4(weight_q: NDArray[np.int8], weight_scale: Float32) -> Float32:
    """weight_q (rows, columns) times the scale of its group, (rows, groups)."""
    columns = weight_q.shape[1]
    spread = np.repeat(weight_scale, GROUP_COLUMNS, axis=1)[:, :columns]
    return weight_q.astype(np.float32) * spread


def read_quantized(weight_q: TensorEntry, weight_scale: TensorEntry, columns: int) -> Float32:
    """A stored pair, already checked, as float32 (rows, columns)."""
    if weight_q.dtype == "U8":
        return dequantize_int4(unpack_int4(weight_q.data, columns), weight_scale.data)
    return dequantize(weight_q.data, weight_scale.data)


def check_quantized(
    name: str, weight_q: TensorEntry, weight_scale: TensorEntry, shape: tuple[int, int]
) -> None:
    """Refuse a stored pair that does not mean a matrix.

    Args:
        name: for messages, without `_q` or `_scale`.
        weight_q: as in the table above.
        weight_scale: as in the table above.
        shape: (rows, columns) that the matrix must have.

    Raises:
        WeightsError: a dtype or a shape that is not in the table, or scales that are not positive
            and finite (zero is allowed: a row of zeros).
    """
    rows, columns = shape
    packed = weight_q.dtype == "U8"
    expected = (rows, -(-columns // 2)) if packed else shape
    scales = (rows, num_groups(columns)) if packed else (rows,)
    where = f"{weight_q.file}: {name}"
    if weight_q.dtype not in ("I8", "U8") or weight_q.data.shape != expected:
        raise WeightsError(
            f"{where}_q must be I8 {shape} or U8 {(rows, -(-columns // 2))}, got "
            f"{weight_q.dtype} {weight_q.data.shape}"
        )
    if weight_scale.dtype != "F32" or weight_scale.data.shape != scales:
        raise WeightsError(
            f"{where}_scale must be F32 {scales}, got {weight_scale.dtype} "
            f"{weight_scale.data.shape}"
        )
    scale: Float32 = weight_scale.data
    if not np.all(np.isfinite(scale)) or np.any(scale < 0):
        raise WeightsError(f"{where}_scale must be finite and not negative")
