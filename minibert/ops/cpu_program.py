"""A forward pass on the CPU, recorded once and run by one call of the extension.

What `model.py` asks of an Ops does not depend on the batch, apart from numbers of rows. Recording
it saves the Python between the operators, which for one short text is a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch, IntArray
from minibert.errors import DeviceError, InputError
from minibert.kernels.cpu.loader import native
from minibert.ops.interface import TABLE_NAMES, Activation, PoolMode, outside_error

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


class Value(NamedTuple):
    """A result while recording: one row for each token, or for each sequence."""

    number: int
    per_sequence: bool
    cols: int


class Program:
    """What `function` computes, for any batch. Thread-safe once recorded."""

    def __init__(
        self, function: Callable[[Any, Any], tuple[Any, ...]], *, attention_format: int
    ) -> None:
        """Record `function(ops, batch)`; nothing is computed.

        Args:
            function: a forward pass.
            attention_format: how attention multiplies, of `ATTENTION_FORMATS`.
        """
        recorder = _Recorder(attention_format)
        self._results: tuple[Value, ...] = function(recorder, None)
        self._handle = recorder.handle
        self._kept = recorder.kept
        self._table_rows = recorder.table_rows
        self._distinct = tuple({value.number: value for value in self._results}.values())
        native().program_finish(self._handle, *(value.number for value in self._distinct))

    def run(self, stream: Any, batch: CpuBatch) -> tuple[FloatArray, ...]:
        """Compute the results of one batch on a native stream.

        Raises:
            InputError: an id outside its table.
        """
        rows = batch.num_tokens, batch.num_seqs
        arrays = {
            number: np.empty((rows[per_sequence], cols), np.float32)
            for number, per_sequence, cols in self._distinct
        }
        outside = native().program_run(
            stream,
            self._handle,
            *batch.ids,
            batch.cu_seqlens,
            batch.skip,
            batch.num_tokens,
            batch.num_seqs,
            *arrays.values(),
        )
        if outside >= 0:
            raise_outside(outside, batch, self._table_rows)
        return tuple(arrays[value.number] for value in self._results)


class _Recorder:
    """The part of `Ops` that a forward pass calls; each call becomes an instruction."""

    def __init__(self, attention_format: int) -> None:
        self.handle = native().program()
        self.attention_format = attention_format
        self.kept: list[Any] = []  # weights, whose addresses the program holds
        self.table_rows: tuple[int, ...] = ()

    def embed(
        self, batch: None, tables: Sequence[CpuEmbedding | None], norm: CpuLayerNorm | None
    ) -> Value:
        """See `Ops.embed`."""
        out = self._value(False, check_embed(tables, norm))
        self.table_rows = tuple(0 if table is None else len(table.weight) for table in tables)
        self.kept += [*tables, norm]
        numbers: list[int] = []
        for table in tables:
            numbers += (0, 0) if table is None else (table.address, len(table.weight))
        native().program_embed(
            self.handle, out.number, *numbers, *((0, 0, 0.0) if norm is None else norm.addresses)
        )
        return out

    def linear(
        self,
        hidden: Value,
        weights: CpuLinear,
        *,
        activation: Activation | None = None,
        residual: Value | None = None,
    ) -> Value:
        """See `Ops.linear`."""
        check_columns(hidden.cols, weights.in_features)
        out = self._value(hidden.per_sequence, weights.out_features)
        if residual is not None and (residual.per_sequence, residual.cols) != (
            out.per_sequence,
            out.cols,
        ):
            raise InputError(f"residual must have {out.cols} columns, got {residual.cols}")
        self.kept.append(weights)
        native().program_linear(
            self.handle,
            out.number,
            hidden.number,
            -1 if residual is None else residual.number,
            weights.handle,
            ACTIVATIONS[activation],
        )
        return out

    def layer_norm(self, hidden: Value, norm: CpuLayerNorm) -> Value:
        """See `Ops.layer_norm`."""
        check_columns(hidden.cols, norm.weight.size)
        out = self._value(hidden.per_sequence, hidden.cols)
        self.kept.append(norm)
        native().program_layer_norm(self.handle, out.number, hidden.number, *norm.addresses)
        return out

    def attention(
        self, qkv: Value, batch: None, *, num_heads: int, head_dim: int, softmax_scale: float
    ) -> Value:
        """See `Ops.attention`."""
        check_attention(qkv.cols, num_heads, head_dim, softmax_scale)
        out = self._value(False, num_heads * head_dim)
        native().program_attention(
            self.handle,
            out.number,
            qkv.number,
            num_heads,
            head_dim,
            softmax_scale,
            self.attention_format,
        )
        return out

    def pool(self, hidden: Value, batch: None, mode: PoolMode) -> Value:
        """See `Ops.pool`."""
        if hidden.per_sequence:
            raise InputError("hidden must have a row for each token, got one for each sequence")
        out = self._value(True, hidden.cols)
        native().program_pool(self.handle, out.number, hidden.number, POOL_MODES[mode])
        return out

    def normalize(self, rows: Value) -> Value:
        """See `Ops.normalize`."""
        out = self._value(rows.per_sequence, rows.cols)
        native().program_normalize(self.handle, out.number, rows.number)
        return out

    def concatenate(self, arrays: Sequence[Value]) -> Value:
        """See `Ops.concatenate`."""
        if len(arrays) == 1:
            return arrays[0]
        if len({array.per_sequence for array in arrays}) != 1:
            raise InputError("arrays must have equal rows, got some per token, some per sequence")
        out = self._value(arrays[0].per_sequence, sum(array.cols for array in arrays))
        first = 0
        for array in arrays:
            native().program_copy_columns(self.handle, out.number, array.number, first)
            first += array.cols
        return out

    def _value(self, per_sequence: bool, cols: int) -> Value:
        return Value(native().program_value(self.handle, per_sequence, cols), per_sequence, cols)


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
