"""Ops in NumPy: the reference for every other implementation, and the fallback without kernels.

Linear layers run one sequence at a time. BLAS gives a row different last bits in products of
different heights (measured with OpenBLAS: in 78 of 80 heights), so a product over a whole batch
would make a text's vector depend on its neighbours. One product per text has a shape that depends
on the text alone; it is also small enough to stay in cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.errors import DeviceOptionError
from minibert.ops.activations import activate
from minibert.ops.interface import (
    Activation,
    ForwardShape,
    PoolMode,
    check_ids,
    check_sparsity,
)
from minibert.weights.quantize import quantize_activations

FloatArray = NDArray[Any]
_SCORES_BLOCK = 1 << 20  # attention scores alive at once, in elements: 4 MB of float32
_NORM_ROWS = 256  # rows of layer_norm at once: their temporaries stay in cache
DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: FloatArray  # (out_features, in_features)
    bias: FloatArray | None
    input_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _LayerNorm:
    weight: FloatArray
    bias: FloatArray | None
    eps: float


class ReferenceOps:
    """`Ops` in NumPy. `dtype` is "float32", or "float64" for checking."""

    name = "reference"
    num_streams = 1  # BLAS brings its own threads
    num_idle_streams = 0
    preferred_batch_tokens = 4096
    head_dim_multiple = 1

    def __init__(self, dtype: str = "float32") -> None:
        """Choose the floating type of weights, activations and results.

        Raises:
            DeviceOptionError: a dtype that NumPy does not compute in.
        """
        if dtype not in DTYPES:
            raise DeviceOptionError(
                f"dtype must be one of {', '.join(DTYPES)} on the NumPy ops, got {dtype!r}"
            )
        self.dtype = dtype
        self._float = np.dtype(dtype)
        self._bounds: list[tuple[int, int]] = []

    @contextmanager
    def stream(self, *, alone: bool) -> Iterator[ReferenceOps]:
        """See `Ops.stream`; `alone` makes no difference here."""
        yield copy.copy(self)

    def expect_batch(self) -> None:
        """See `Ops.expect_batch`: nothing sleeps."""

    def scratch_bytes(self, shape: ForwardShape) -> int:
        """See `Ops.scratch_bytes`: arrays alive at the widest point, and per-text temporaries."""
        d, f = shape.hidden_size, shape.intermediate_size
        context = shape.qkv_size // 3
        # Attention: hidden, qkv, context, sum, its norm. Feed-forward: hidden, wide, sum, its norm.
        per_token = max(3 * d + shape.qkv_size + context, 3 * d + f)
        longest = min(shape.max_seqlen, shape.num_tokens)
        # A block holds whole heads, so it is at least one row of scores; exp works in place.
        scores = max(_SCORES_BLOCK, longest) + longest * context
        temporaries = max(3 * longest * f, scores, 3 * _NORM_ROWS * d)
        indices = 8 * shape.num_tokens
        return self._float.itemsize * (shape.num_tokens * per_token + temporaries) + indices

    def close(self) -> None:
        """See `Ops.close`: nothing to give back."""

    def prepare_linear(
        self,
        weight: FloatArray,
        bias: FloatArray | None,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> _Linear:
        """See `Ops.prepare_linear`: float32 stays where it is, in the mapped file; zeros, too."""
        check_sparsity(sparsity, name=name)
        return _Linear(
            weight.astype(self._float, copy=False),
            None if bias is None else bias.astype(self._float, copy=False),
            input_range,
        )

    def prepare_layer_norm(
        self, weight: FloatArray, bias: FloatArray | None, *, eps: float
    ) -> _LayerNorm:
        """See `Ops.prepare_layer_norm`."""
        return _LayerNorm(
            weight.astype(self._float, copy=False),
            None if bias is None else bias.astype(self._float, copy=False),
            eps,
        )

    def prepare_embedding(self, weight: FloatArray) -> FloatArray:
        """See `Ops.prepare_embedding`: float32 stays where it is, in the mapped file."""
        return weight.astype(self._float, copy=False)

    def upload(self, batch: Batch) -> Batch:
        """See `Ops.upload`: the batch is used as it is."""
        cu_seqlens = batch.cu_seqlens.tolist()
        self._bounds = list(pairwise(cu_seqlens))
        return batch

    def download(self, array: FloatArray) -> FloatArray:
        """See `Ops.download`."""
        return np.array(array, self._float)

    def forward(
        self,
        batch: Batch,
        function: Callable[[ReferenceOps, Batch], tuple[Any, ...]],
        *,
        key: Hashable,
    ) -> tuple[FloatArray, ...]:
        """See `Ops.forward`; nothing is recorded."""
        uploaded = self.upload(batch)
        return tuple(self.download(array) for array in function(self, uploaded))

    def embed(self, batch: Batch, tables: Sequence[Any], norm: _LayerNorm | None) -> FloatArray:
        """See `Ops.embed`.

        Raises:
            InputError: an id outside its table.
        """
        check_ids(batch, [None if table is None else len(table) for table in tables])
        word, position, token_type = tables
        hidden: FloatArray = word[batch.input_ids]
        if position is not None:
            hidden += position[batch.position_ids]
        if token_type is not None:
            hidden += token_type[batch.token_type_ids]
        return hidden if norm is None else self.layer_norm(hidden, norm)

    def linear(
        self,
        hidden: FloatArray,
        weights: _Linear,
        *,
        activation: Activation | None = None,
        residual: FloatArray | None = None,
    ) -> FloatArray:
        """See `Ops.linear`."""
        out = np.empty((hidden.shape[0], weights.weight.shape[0]), self._float)
        for begin, end in self._row_blocks(hidden.shape[0]):
            block, rows = out[begin:end], hidden[begin:end]
            if weights.input_range is not None:
                rows = quantize_activations(rows, threshold=weights.input_range)
            np.matmul(rows, weights.weight.T, out=block)
            if weights.bias is not None:
                block += weights.bias
            if activation is not None:
                activate(block, activation)
            if residual is not None:
                block += residual[begin:end]
        return out

    def layer_norm(self, hidden: FloatArray, norm: _LayerNorm) -> FloatArray:
        """See `Ops.layer_norm`."""
        out = np.empty_like(hidden)
        for begin in range(0, hidden.shape[0], _NORM_ROWS):
            rows = hidden[begin : begin + _NORM_ROWS]
            block = out[begin : begin + _NORM_ROWS]
            np.subtract(rows, rows.mean(axis=-1, keepdims=True), out=block)
            variance = np.square(block).mean(axis=-1, keepdims=True)
            variance += norm.eps
            block /= np.sqrt(variance, out=variance)
            block *= norm.weight
            if norm.bias is not None:
                block += norm.bias
        return out

    def attention(
        self,
        qkv: FloatArray,
        batch: Batch,
        *,
        num_heads: int,
        head_dim: int,
        softmax_scale: float,
    ) -> FloatArray:
        """See `Ops.attention`: heads in groups, queries in blocks, so that scores stay small."""
        context = np.empty((qkv.shape[0], num_heads * head_dim), self._float)
        scale = self._float.type(softmax_scale)
        for begin, end in self._bounds:
            seqlen = end - begin
            parts = qkv[begin:end].reshape(seqlen, 3, num_heads, head_dim)
            query, key, value = parts.transpose(1, 2, 0, 3)  # each (num_heads, seqlen, head_dim)
            out = context[begin:end].reshape(seqlen, num_heads, head_dim).transpose(1, 0, 2)
            group = max(1, _SCORES_BLOCK // (seqlen * seqlen))
            rows = max(1, min(seqlen, _SCORES_BLOCK // seqlen))
            for head in range(0, num_heads, group):
                heads = slice(head, head + group)
                for row in range(0, seqlen, rows):
                    block = slice(row, row + rows)
                    scores = (query[heads, block] * scale) @ key[heads].transpose(0, 2, 1)
                    scores -= scores.max(axis=-1, keepdims=True)
                    np.exp(scores, out=scores)
                    sums = scores.sum(axis=-1, keepdims=True)
                    out[heads, block] = (scores @ value[heads]) / sums
        return context

    def pool(self, hidden: FloatArray, batch: Batch, mode: PoolMode) -> FloatArray:
        """See `Ops.pool`; sums are float64, so a long text loses nothing to its length."""
        out = np.empty((batch.num_seqs, hidden.shape[1]), self._float)
        for i, (begin, end) in enumerate(self._bounds):
            skip = int(batch.skip[i])
            kept = hidden[begin + skip : end]
            if mode == "cls":
                out[i] = kept[0]
            elif mode == "lasttoken":
                out[i] = kept[-1]
            elif mode == "max":
                out[i] = kept.max(axis=0)
            elif mode == "weightedmean":
                weights = np.arange(skip + 1, end - begin + 1, dtype=np.float64)
                out[i] = (kept * weights[:, None]).sum(axis=0) / weights.sum()
            else:
                total = kept.sum(axis=0, dtype=np.float64)
                count = float(end - begin - skip)
                out[i] = total / (count if mode == "mean" else np.sqrt(count))
        return out

    def normalize(self, rows: FloatArray) -> FloatArray:
        """See `Ops.normalize`."""
        norms = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=-1, keepdims=True))
        return np.asarray(rows / np.maximum(norms, 1e-12), self._float)

    def concatenate(self, arrays: Sequence[FloatArray]) -> FloatArray:
        """See `Ops.concatenate`."""
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    def _row_blocks(self, num_rows: int) -> Sequence[tuple[int, int]]:
        """Rows that one product takes: a text's tokens, or one pooled vector."""
        if self._bounds and self._bounds[-1][1] == num_rows:
            return self._bounds
        return [(row, row + 1) for row in range(num_rows)]
