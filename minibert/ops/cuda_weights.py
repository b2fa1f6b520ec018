"""Weights as the CUDA kernels read them: converted, padded and, for int8, quantized.

A matrix keeps the checkpoint's (out_features, in_features) order. Its sides are padded with zeros
to what 16-byte reads need; activations have the same padding, and it never reaches a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import DeviceError
from minibert.kernels.cuda.device import Device
from minibert.kernels.cuda.launch import has_sparse_gemm
from minibert.kernels.cuda.sparse_layout import check_two_of_four, pack_two_of_four
from minibert.ops.interface import check_sparsity

__all__ = ["Embedding", "LayerNorm", "Linear", "pad_to", "quantize_weight", "to_dtype"]

PADDING = 8
"""Rows of activations are stored as multiples of this many elements."""

QUANTIZED_PADDING = 16
"""Rows of int8 activations and weights likewise."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer on the device.

    Attributes:
        weight: (stored_out, stored_in) of the operand type; where 2:4 sparse, the kept values,
            half as many and filled up.
        places: where the kept values belong, None for a dense weight.
        stored_in: columns of its input as stored.
        bias: (stored_out,) float32, zeros where the checkpoint has none.
        weight_scale: (stored_out,) float32 for int8, else None.
        weight_sum: (stored_out,) int32, sums of the rows of an int8 weight, else None.
        in_features: columns of its input.
        out_features: columns of its output.
        input_range: (low, high) fixed for its input in int8, or None.
    """

    weight: Any
    bias: Any
    weight_scale: Any
    weight_sum: Any
    in_features: int
    out_features: int
    stored_in: int
    places: Any = None
    input_range: tuple[float, float] | None = None

    @property
    def stored_out(self) -> int:
        """Columns of the output as stored."""
        return int(self.weight.shape[0])


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """One layer normalisation on the device: weight and bias (hidden_size,) float32."""

    weight: Any
    bias: Any
    eps: float
    hidden_size: int


@dataclass(frozen=True, slots=True)
class Embedding:
    """One embedding table on the device, (num_rows, width)."""

    table: Any
    num_rows: int
    width: int


def pad_to(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def to_dtype(array: NDArray[Any], dtype: str, *, name: str) -> NDArray[Any]:
    """Round a float array to the storage of a dtype; bfloat16 comes as uint16.

    Raises:
        DeviceError: a value is too large for float16.
    """
    wide = np.asarray(array, np.float32)
    if dtype == "float32":
        return wide
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = wide.astype(np.float16)
        if not np.isfinite(half).all():
            largest = float(np.abs(wide).max())
            raise DeviceError(
                f"{name} must fit float16, its largest value is {largest:g}: use dtype='bfloat16'"
            )
        return half
    bits = np.ascontiguousarray(wide).view(np.uint32)
    # To nearest, ties to even: half a unit less one, plus the last bit that stays.
    rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def quantize_weight(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per output channel: the largest absolute value of a row becomes 127.

    Args:
        weight: (out_features, in_features).

    Returns:
        weight_q int8 and weight_scale (out_features,) float32, weight ~ weight_q * weight_scale.
    """
    wide = np.asarray(weight, np.float32)
    scale = np.abs(wide).max(axis=1, initial=0.0) / np.float32(127)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.rint(wide / divisor).astype(np.int8), scale.astype(np.float32)


def make_linear(
    device: Device,
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    *,
    dtype: str,
    quantized: bool,
    name: str,
    sparsity: str | None = None,
    input_range: tuple[float, float] | None = None,
) -> Linear:
    """Lay out a linear layer; `dtype` is that of activations, and of weights not quantized.

    Weights with `sparsity` "2:4" are for the sparse tensor cores where the device has them for
    this dtype. All others are dense: no kernel gains by the zeros of "block".

    Raises:
        InputError: a sparsity that is none of `SPARSITIES`.
        DeviceError: a value too large for float16, or weights that are not as sparse as claimed.
    """
    check_sparsity(sparsity, name=name)
    two_of_four = sparsity == "2:4"
    if two_of_four:
        check_two_of_four(weight, name=name)
    out_features, in_features = weight.shape
    stored_out = pad_to(out_features, PADDING)
    stored_in = pad_to(in_features, QUANTIZED_PADDING if quantized else PADDING)
    weight_scale = weight_sum = places = None
    if two_of_four and not quantized and has_sparse_gemm(device.target, dtype):
        whole = _padded_matrix(to_dtype(weight, dtype, name=name), stored_out, stored_in)
        stored, words = pack_two_of_four(whole)
        places = device.to_device(words)
    elif quantized:
        weight_q, scale = quantize_weight(weight)
        weight_scale = device.to_device(_padded_vector(scale, stored_out))
        stored = _padded_matrix(weight_q, stored_out, stored_in)
        weight_sum = device.to_device(stored.sum(axis=1, dtype=np.int32))
    else:
        stored = _padded_matrix(to_dtype(weight, dtype, name=name), stored_out, stored_in)
    return Linear(
        device.to_device(stored),
        device.to_device(_padded_vector(bias, stored_out)),
        weight_scale,
        weight_sum,
        in_features,
        out_features,
        stored_in,
        places,
        input_range if quantized else None,
    )


def make_layer_norm(
    device: Device, weight: NDArray[Any], bias: NDArray[Any] | None, *, eps: float
) -> LayerNorm:
    """Lay out a layer normalisation."""
    size = int(weight.size)
    return LayerNorm(
        device.to_device(np.asarray(weight, np.float32)),
        device.to_device(_padded_vector(bias, size)),
        eps,
        size,
    )


def make_embedding(device: Device, weight: NDArray[Any], *, dtype: str) -> Embedding:
    """Lay out an embedding table.

    Raises:
        DeviceError: a width that the kernels do not read.
    """
    num_rows, width = weight.shape
    if width % PADDING:
        raise DeviceError(
            f"hidden_size must be a multiple of {PADDING} on CUDA, got {width}; use device='cpu'"
        )
    table = device.to_device(to_dtype(weight, dtype, name="an embedding table"))
    return Embedding(table, num_rows, width)


def _padded_vector(vector: NDArray[Any] | None, size: int) -> NDArray[np.float32]:
    padded = np.zeros(size, np.float32)
    if vector is not None:
        padded[: vector.size] = vector
    return padded


def _padded_matrix(matrix: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    if matrix.shape == (rows, columns):
        return matrix
    padded = np.zeros((rows, columns), matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
