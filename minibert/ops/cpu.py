"""Ops on the CPU through the kernels of `minibert.kernels.cpu`.

Arrays are addresses in a stream's own memory: blocks return to the stream when the last reference
to an array goes, so that a forward pass in steady state allocates nothing. A stream is one thread
(throughput: the engine runs `num_streams` of them) or, with `alone=True`, a team of all cores.
Results are the same bytes either way.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.errors import DeviceError, InputError
from minibert.kernels.cpu.cores import usable_cores
from minibert.kernels.cpu.loader import available, choose_path, native
from minibert.ops.interface import Activation, ForwardShape, PoolMode

__all__ = ["CpuArray", "CpuOps", "available"]

FloatArray = NDArray[np.float32]
DTYPES = ("float32", "bfloat16", "float16", "int8")
MATMUL_PRECISIONS = ("highest", "high", "medium")
MAX_HEAD_DIM = 1024

_ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}
_POOL_MODES = {
    "cls": 0,
    "mean": 1,
    "max": 2,
    "mean_sqrt_len_tokens": 3,
    "weightedmean": 4,
    "lasttoken": 5,
}
_TABLE_NAMES = ("input_ids", "position_ids", "token_type_ids")
_ALIGNMENT = 64


class _Memory:
    """Blocks of one stream: taken for an array, given back when the array goes."""

    def __init__(self) -> None:
        self._free: list[_Block] = []
        self.total_bytes = 0

    def take(self, size: int) -> _Block:
        """The smallest free block that is large enough; else a new one in place of a free one."""
        best: _Block | None = None
        largest: _Block | None = None
        for block in self._free:
            if block.size >= size and (best is None or block.size < best.size):
                best = block
            if largest is None or block.size > largest.size:
                largest = block
        if best is not None:
            self._free.remove(best)
            return best
        if largest is not None:  # too small for this request: replaced, so that none is left over
            self._free.remove(largest)
            self.total_bytes -= largest.size
        fresh = _Block(self, size)
        self.total_bytes += size
        return fresh

    def give_back(self, block: _Block) -> None:
        self._free.append(block)


class _Block:
    __slots__ = ("address", "buffer", "memory", "size")

    def __init__(self, memory: _Memory, size: int) -> None:
        self.memory = memory
        self.size = size
        self.buffer = np.empty(size + _ALIGNMENT, np.uint8)
        address = self.buffer.ctypes.data
        self.address = address + -address % _ALIGNMENT


class CpuArray:
    """A float32 array (rows, cols) in a stream's memory."""

    __slots__ = ("_block", "address", "cols", "rows")

    def __init__(self, memory: _Memory, rows: int, cols: int) -> None:
        """Take a block; its values are arbitrary."""
        self.rows = rows
        self.cols = cols
        self._block = memory.take(4 * rows * cols)
        self.address = self._block.address

    def __del__(self) -> None:
        """Give the block back to the stream."""
        block = self._block
        block.memory.give_back(block)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.rows, self.cols


@dataclass(frozen=True, slots=True)
class _Linear:
    handle: Any
    out_features: int
    in_features: int
    format: str


@dataclass(frozen=True, slots=True)
class _LayerNorm:
    weight: FloatArray
    bias: FloatArray | None
    addresses: tuple[int, int, float]  # weight, bias or 0, eps


@dataclass(frozen=True, slots=True)
class _Embedding:
    weight: FloatArray
    address: int


@dataclass(frozen=True, slots=True)
class _CpuBatch:
    batch: Batch
    num_tokens: int
    num_seqs: int
    ids: tuple[int, int, int]  # addresses of input_ids, position_ids, token_type_ids
    cu_seqlens: int
    skip: int


class _State:
    """What one running batch holds: a native stream and its memory."""

    def __init__(self, path_index: int, threads: int) -> None:
        self.handle = native().stream(path_index, threads)
        self.memory = _Memory()
        self.is_team = threads > 1


class CpuOps:
    """`Ops` on the CPU: see the module."""

    name = "cpu"
    head_dim_multiple = 8
    preferred_batch_tokens = 512  # activations of a layer stay in the second- and third-level cache

    def __init__(
        self,
        dtype: str = "float32",
        *,
        matmul_precision: str = "highest",
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Choose number format, threads and instruction-set path.

        Args:
            dtype: float32, bfloat16, float16 or int8: how linear layers hold and multiply weights.
                Everything between them is float32.
            matmul_precision: for float32: highest, high or medium, see docs/cpu.md. Processors
                without matrix units compute all three by float32 multiply-adds, which is more exact
                and, there, as fast.
            threads: cores to use; all usable ones when None.
            isa: an instruction-set path; `MINIBERT_CPU_ISA`, or the fastest, when None.

        Raises:
            DeviceError: the kernels are not there, or an argument names nothing supported.
        """
        if dtype not in DTYPES:
            raise DeviceError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if matmul_precision not in MATMUL_PRECISIONS:
            raise DeviceError(
                f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, "
                f"got {matmul_precision!r}"
            )
        if threads is not None and threads < 1:
            raise DeviceError(f"threads must be at least 1, got {threads}")
        self.path = choose_path(isa)
        self.dtype = dtype
        self.matmul_precision = matmul_precision
        self.format = linear_format(dtype, matmul_precision, self.path.formats)
        self.threads = min(threads, usable_cores()) if threads else usable_cores()
        self.num_streams = self.threads
        self._native = native()
        self._pool = _StreamPool(self.path.index, self.threads)
        self._state: _State | None = None

    # ---- streams -------------------------------------------------------------------------------
    @contextmanager
    def stream(self, *, alone: bool) -> Iterator[CpuOps]:
        """See `Ops.stream`; a second stream with `alone=True` at the same time gets one thread."""
        state = self._pool.take(alone)
        running = copy.copy(self)
        running._state = state
        try:
            yield running
        finally:
            running._state = None
            self._pool.give_back(state)

    def scratch_bytes(self, shape: ForwardShape) -> int:
        """See `Ops.scratch_bytes`."""
        context = shape.qkv_size // 3
        widths = 4 * shape.hidden_size + shape.qkv_size + context + shape.intermediate_size
        widest = max(shape.hidden_size, shape.intermediate_size, context)
        team = self.threads
        # Packed keys and values of one block, scores: attention.h. Activations as int8 or split
        # into bfloat16 parts: at most 8 bytes a value, rows rounded up to a block.
        head = 4 * (2 * 256 * (shape.head_dim + 64) + 48 * (256 + shape.head_dim + 64))
        panel = 4 * 64 * (widest + 64)
        prepared = 0 if self.format == "float32" else 8 * (shape.num_tokens + 128) * (widest + 64)
        return 4 * shape.num_tokens * widths + team * max(head, panel) + prepared + 4096

    def close(self) -> None:
        """See `Ops.close`."""
        self._pool.close()

    # ---- weights, once at load -----------------------------------------------------------------
    def prepare_linear(
        self,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
    ) -> Any:
        """See `Ops.prepare_linear`: packed into panels of the path."""
        values = np.ascontiguousarray(weight, np.float32)
        offsets = None if bias is None else np.ascontiguousarray(bias, np.float32)
        out_features, in_features = values.shape
        chosen = self.format
        if dtype is not None:
            chosen = linear_format(dtype, self.matmul_precision, self.path.formats)
        try:
            handle = self._native.pack_linear(
                self.path.index,
                chosen,
                values.ctypes.data,
                out_features,
                in_features,
                0 if offsets is None else offsets.ctypes.data,
            )
        except ValueError as error:
            raise DeviceError(f"{name}: {error}") from error
        return _Linear(handle, out_features, in_features, chosen)

    def prepare_layer_norm(
        self, weight: NDArray[Any], bias: NDArray[Any] | None, *, eps: float
    ) -> Any:
        """See `Ops.prepare_layer_norm`."""
        scale = np.array(weight, np.float32)
        offset = None if bias is None else np.array(bias, np.float32)
        address = 0 if offset is None else offset.ctypes.data
        return _LayerNorm(scale, offset, (scale.ctypes.data, address, eps))

    def prepare_embedding(self, weight: NDArray[Any]) -> Any:
        """See `Ops.prepare_embedding`: float32 stays where it is, in the mapped file."""
        table = np.ascontiguousarray(weight, np.float32)
        return _Embedding(table, table.ctypes.data)

    # ---- transfer ------------------------------------------------------------------------------
    def upload(self, batch: Batch) -> Any:
        """See `Ops.upload`: the batch's own arrays are used."""
        if np.any(batch.skip < 0) or np.any(batch.skip >= batch.seqlens):
            raise InputError("skip must leave at least one token of every text")
        arrays = [
            np.ascontiguousarray(getattr(batch, name))
            for name in (*_TABLE_NAMES, "cu_seqlens", "skip")
        ]
        held = Batch(arrays[0], arrays[2], arrays[1], arrays[3], arrays[4])
        words, positions, types, cu_seqlens, skip = (array.ctypes.data for array in arrays)
        return _CpuBatch(
            held, batch.num_tokens, batch.num_seqs, (words, positions, types), cu_seqlens, skip
        )

    def download(self, array: CpuArray) -> FloatArray:
        """See `Ops.download`."""
        out = np.empty(array.shape, np.float32)
        if out.size:
            self._native.copy_columns(
                out.ctypes.data, array.cols, 0, array.address, array.cols, array.rows
            )
        return out

    # ---- forward -------------------------------------------------------------------------------
    def forward(
        self,
        batch: Batch,
        function: Callable[[CpuOps, Any], tuple[Any, ...]],
        *,
        key: Hashable,
    ) -> tuple[FloatArray, ...]:
        """See `Ops.forward`; nothing is recorded."""
        uploaded = self.upload(batch)
        return tuple(self.download(array) for array in function(self, uploaded))

    def embed(self, batch: _CpuBatch, tables: Sequence[Any], norm: _LayerNorm | None) -> CpuArray:
        """See `Ops.embed`.

        Raises:
            InputError: an id outside its table.
        """
        state = self._running()
        hidden_size = tables[0].weight.shape[1]
        out = CpuArray(state.memory, batch.num_tokens, hidden_size)
        lookups: list[int] = []
        for ids, table in zip(batch.ids, tables, strict=True):
            lookups += (ids, 0, 0) if table is None else (ids, table.address, len(table.weight))
        outside = self._native.embed(
            state.handle,
            out.address,
            *lookups,
            *((0, 0, 0.0) if norm is None else norm.addresses),
            batch.num_tokens,
            hidden_size,
        )
        if outside >= 0:
            token, table_index = divmod(outside, len(_TABLE_NAMES))
            name = _TABLE_NAMES[table_index]
            raise InputError(
                f"{name} must be from 0 to {len(tables[table_index].weight) - 1}, "
                f"got {getattr(batch.batch, name)[token]} at token {token}"
            )
        return out

    def linear(
        self,
        hidden: CpuArray,
        weights: _Linear,
        *,
        activation: Activation | None = None,
        residual: CpuArray | None = None,
    ) -> CpuArray:
        """See `Ops.linear`."""
        state = self._running()
        if hidden.cols != weights.in_features:
            raise InputError(f"hidden must have {weights.in_features} columns, got {hidden.cols}")
        out = CpuArray(state.memory, hidden.rows, weights.out_features)
        if residual is not None and residual.shape != out.shape:
            raise InputError(f"residual must be {out.shape}, got {residual.shape}")
        self._native.linear(
            state.handle,
            weights.handle,
            out.address,
            hidden.address,
            0 if residual is None else residual.address,
            hidden.rows,
            _ACTIVATIONS[activation],
        )
        return out

    def layer_norm(self, hidden: CpuArray, norm: _LayerNorm) -> CpuArray:
        """See `Ops.layer_norm`."""
        state = self._running()
        if hidden.cols != norm.weight.size:
            raise InputError(f"hidden must have {norm.weight.size} columns, got {hidden.cols}")
        out = CpuArray(state.memory, hidden.rows, hidden.cols)
        self._native.layer_norm(
            state.handle, out.address, hidden.address, *norm.addresses, hidden.rows, hidden.cols
        )
        return out

    def attention(
        self,
        qkv: CpuArray,
        batch: _CpuBatch,
        *,
        num_heads: int,
        head_dim: int,
        softmax_scale: float,
    ) -> CpuArray:
        """See `Ops.attention`; head_dim is a multiple of 8."""
        state = self._running()
        if head_dim < 1 or head_dim % 8 or head_dim > MAX_HEAD_DIM:
            raise InputError(
                f"head_dim must be a multiple of 8 up to {MAX_HEAD_DIM}, got {head_dim}"
            )
        if softmax_scale <= 0:
            raise InputError(f"softmax_scale must be positive, got {softmax_scale}")
        if qkv.shape != (batch.num_tokens, 3 * num_heads * head_dim):
            raise InputError(
                f"qkv must be {(batch.num_tokens, 3 * num_heads * head_dim)}, got {qkv.shape}"
            )
        out = CpuArray(state.memory, qkv.rows, num_heads * head_dim)
        self._native.attention(
            state.handle,
            out.address,
            qkv.address,
            batch.cu_seqlens,
            batch.num_seqs,
            num_heads,
            head_dim,
            softmax_scale,
        )
        return out

    def pool(self, hidden: CpuArray, batch: _CpuBatch, mode: PoolMode) -> CpuArray:
        """See `Ops.pool`; sums are float64, so a long text loses nothing to its length."""
        state = self._running()
        if hidden.rows != batch.num_tokens:
            raise InputError(f"hidden must have {batch.num_tokens} rows, got {hidden.rows}")
        out = CpuArray(state.memory, batch.num_seqs, hidden.cols)
        self._native.pool(
            out.address,
            hidden.address,
            batch.cu_seqlens,
            batch.skip,
            batch.num_seqs,
            hidden.cols,
            _POOL_MODES[mode],
        )
        return out

    def normalize(self, rows: CpuArray) -> CpuArray:
        """See `Ops.normalize`."""
        out = CpuArray(self._running().memory, rows.rows, rows.cols)
        self._native.normalize(out.address, rows.address, rows.rows, rows.cols)
        return out

    def concatenate(self, arrays: Sequence[CpuArray]) -> CpuArray:
        """See `Ops.concatenate`."""
        if len(arrays) == 1:
            return arrays[0]
        if len({array.rows for array in arrays}) != 1:
            raise InputError(f"arrays must have equal rows, got {[a.rows for a in arrays]}")
        cols = sum(array.cols for array in arrays)
        out = CpuArray(self._running().memory, arrays[0].rows, cols)
        first = 0
        for array in arrays:
            self._native.copy_columns(
                out.address, cols, first, array.address, array.cols, array.rows
            )
            first += array.cols
        return out

    def _running(self) -> _State:
        if self._state is None:
            raise DeviceError("operators must be called inside `with ops.stream(...) as running`")
        return self._state


class _StreamPool:
    """Streams between batches. Threads belong to the process that made them: a fork starts anew."""

    def __init__(self, path_index: int, threads: int) -> None:
        self._path_index = path_index
        self._threads = threads
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._single: list[_State] = []
        self._team: list[_State] = []
        self._team_made = False

    def take(self, alone: bool) -> _State:
        if self._pid != os.getpid():
            self._start()
        make_team = False
        with self._lock:
            if self._closed:
                raise DeviceError("CpuOps was closed and cannot be used any more")
            if alone and self._threads > 1:
                if self._team:
                    return self._team.pop()
                make_team = not self._team_made
                self._team_made = True
            if not make_team and self._single:
                return self._single.pop()
        return _State(self._path_index, self._threads if make_team else 1)

    def give_back(self, state: _State) -> None:
        with self._lock:
            if not self._closed:
                (self._team if state.is_team else self._single).append(state)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._single.clear()
            self._team.clear()


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
