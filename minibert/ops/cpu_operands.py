"""What the operators of the CPU take, one by one (cpu.py) or recorded (cpu_program.py).

Weights and batches where the kernels find them, the numbers by which the extension knows words, and
what does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch, IntArray
from minibert.errors import DeviceError, InputError
from minibert.ops.interface import TABLE_NAMES, outside_error

FloatArray = NDArray[np.float32]
MAX_HEAD_DIM = 1024
_FLOAT16_END = 65520.0  # rounds to infinity
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}
POOL_MODES = {
    "cls": 0,
    "mean": 1,
    "max": 2,
    "mean_sqrt_len_tokens": 3,
    "weightedmean": 4,
    "lasttoken": 5,
}

# Linear layers' format: that of attention; float32 for all others. Paths compute in float32 what
# they have no kernels for.
ATTENTION_FORMATS = {"bfloat16x3": 1, "bfloat16x1": 2, "int8": 2}


class CpuLinear(NamedTuple):
    """A packed linear layer."""

    handle: Any
    out_features: int
    in_features: int
    format: str
    owner: Any = None  # keeps memory that the handle does not


class CpuLayerNorm(NamedTuple):
    """Weight and bias where the kernels find them."""

    weight: FloatArray
    bias: FloatArray | None
    addresses: tuple[int, int, float]  # weight, bias or 0, eps


class CpuEmbedding(NamedTuple):
    """An embedding table where the kernels find it."""

    weight: FloatArray
    address: int


class CpuBatch(NamedTuple):
    """A batch whose arrays the kernels can read."""

    batch: Batch
    num_tokens: int
    num_seqs: int
    ids: tuple[IntArray, IntArray, IntArray]  # input_ids, position_ids, token_type_ids
    cu_seqlens: IntArray
    skip: IntArray


def linear_format(dtype: str, matmul_precision: str, formats: Sequence[str]) -> str:
    """How a path multiplies: its number format for a dtype and, for float32, a precision.

    Paths with matrix units have "bfloat16x6", "bfloat16x3" and "bfloat16x1", products of operands
    split into bfloat16 parts; the others compute float32 by multiply-adds at every precision.
    """
    if dtype == "float32":
        split = {"highest": "bfloat16x6", "high": "bfloat16x3", "medium": "bfloat16x1"}
        wanted = split[matmul_precision]
        return wanted if wanted in formats else "float32"
    if dtype == "bfloat16" and "bfloat16x1" in formats:
        return "bfloat16x1"
    if dtype not in formats:
        raise DeviceError(f"dtype {dtype} is not supported on this path, which has {formats}")
    return dtype


def check_float16(values: FloatArray, name: str) -> None:
    """Refuse weights that would become infinite."""
    largest = max(values.max(initial=0.0), -values.min(initial=0.0))
    if largest >= _FLOAT16_END:
        raise DeviceError(
            f"{name} must fit float16, its largest value is {largest:g}: use dtype='bfloat16'"
        )


def check_embed(tables: Sequence[CpuEmbedding | None], norm: CpuLayerNorm | None) -> int:
    """The width of all tables and of the norm; refuses where they differ."""
    widths = [table.weight.shape[1] for table in tables if table is not None]
    widths += [] if norm is None else [norm.weight.size]
    if tables[0] is None or len(set(widths)) != 1:
        raise InputError(f"tables and norm must be of one width, words among them, got {widths}")
    return int(widths[0])


def check_columns(cols: int, expected: int) -> None:
    """Refuse rows of another width than the weights'."""
    if cols != expected:
        raise InputError(f"hidden must have {expected} columns, got {cols}")


def check_attention(cols: int, num_heads: int, head_dim: int, softmax_scale: float) -> None:
    """Refuse what the attention kernel does not compute."""
    if head_dim < 1 or head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise InputError(f"head_dim must be a multiple of 8 up to {MAX_HEAD_DIM}, got {head_dim}")
    if softmax_scale <= 0:
        raise InputError(f"softmax_scale must be positive, got {softmax_scale}")
    if cols != 3 * num_heads * head_dim:
        raise InputError(f"qkv must have {3 * num_heads * head_dim} columns, got {cols}")


def raise_outside(outside: int, batch: CpuBatch, table_rows: Sequence[int]) -> None:
    """Name the id that its embedding table does not have; `outside` is what embed returned."""
    token, table = divmod(outside, len(TABLE_NAMES))
    raise outside_error(batch.batch, table, token, table_rows[table])
