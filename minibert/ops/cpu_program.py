"""A forward pass on the CPU, recorded once and run by one call of the extension.

What `model.py` asks of an Ops does not depend on the batch, apart from numbers of rows. Recording
it saves the Python between the operators, which for one short text is a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minibert.errors import InputError
from minibert.kernels.cpu.loader import native
from minibert.ops.cpu_operands import (
    ACTIVATIONS,
    POOL_MODES,
    CpuBatch,
    CpuEmbedding,
    CpuLayerNorm,
    CpuLinear,
    FloatArray,
    check_attention,
    check_columns,
    check_embed,
    raise_outside,
)
from minibert.ops.interface import Activation, PoolMode


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
