"""Ops on the CPU through the kernels of `minibert.kernels.cpu`.

A stream is one thread (throughput: the engine runs `num_streams` of them) or, with `alone=True`, a
team of all cores. Results are the same bytes either way. Whole forward passes are programs
(cpu_program.py); operators can be called one by one as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.errors import DeviceError, DeviceOptionError, InputError
from minibert.kernels.cpu.cores import usable_cores
from minibert.kernels.cpu.loader import available, choose_path, is_built, native
from minibert.ops.cpu_operands import (
    ACTIVATIONS,
    ATTENTION_FORMATS,
    POOL_MODES,
    CpuBatch,
    CpuEmbedding,
    CpuLayerNorm,
    CpuLinear,
    FloatArray,
    check_attention,
    check_columns,
    check_embed,
    check_float16,
    linear_format,
    raise_outside,
)
from minibert.ops.cpu_program import Program
from minibert.ops.cpu_stream import CpuArray, StreamPool, StreamState
from minibert.ops.interface import (
    Activation,
    ForwardShape,
    PoolMode,
    check_matmul_precision,
    check_sparsity,
)

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background
    from minibert.ops.packed_file import PackedFile

__all__ = ["CpuArray", "CpuOps", "available", "is_built"]

DTYPES = ("float32", "bfloat16", "float16", "int8")
_BLOCK_FORMAT = "float32-block"
_LOOKED_AT = (_BLOCK_FORMAT, "float16")  # the values decide its size; whether it can hold them


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
        packed: Callable[[str], PackedFile] | None = None,
        background: Background | None = None,
    ) -> None:
        """Choose number format, threads and instruction-set path.

        Args:
            dtype: float32, bfloat16, float16 or int8: how linear layers hold and multiply weights.
                Between them all is float32, but for the products of attention: docs/cpu.md.
            matmul_precision: for float32: highest, high or medium, see docs/cpu.md. Processors
                without matrix units compute all three by float32 multiply-adds, which is more exact
                and, there, as fast.
            threads: cores to use; all usable ones when None.
            isa: an instruction-set path; `MINIBERT_CPU_ISA`, or the fastest, when None.
            packed: from a path's name to the file that holds, or will hold, packed weights.
            background: lays out weights, which are usable once it was waited for; None does it at
                once, and so does one that was closed.

        Raises:
            DeviceError: the kernels are not there, or an argument names nothing supported.
        """
        if dtype not in DTYPES:
            raise DeviceOptionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        check_matmul_precision(matmul_precision)
        if threads is not None and threads < 1:
            raise DeviceOptionError(f"threads must be at least 1, got {threads}")
        self.path = choose_path(isa)
        self.dtype = dtype
        self.matmul_precision = matmul_precision
        self.format = linear_format(dtype, matmul_precision, self.path.formats)
        self._attention_format = ATTENTION_FORMATS.get(self.format, 0)
        self.threads = min(threads, usable_cores()) if threads else usable_cores()
        self.num_streams = self.threads
        self.num_idle_streams = 1 if self.threads > 1 else 0  # the team
        self._native = native()
        self._pool = StreamPool(self.path.index, self.threads)
        self._state: StreamState | None = None
        self._programs: dict[Hashable, Program] = {}
        self.packed = packed(self.path.name) if packed else None
        self.background = background

    # ---- streams -------------------------------------------------------------------------------
    def stream(self, *, alone: bool) -> _Stream:
        """See `Ops.stream`; a second stream with `alone=True` at the same time gets one thread."""
        return _Stream(self, alone)

    def expect_batch(self) -> None:
        """See `Ops.expect_batch`: wakes the team."""
        self._pool.wake()

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
        input_range: tuple[float, float] | None = None,
    ) -> Any:
        """See `Ops.prepare_linear`: packed into panels of the path."""
        values = np.ascontiguousarray(weight, np.float32)
        bias = None if bias is None else np.ascontiguousarray(bias, np.float32)
        out_features, in_features = values.shape
        if bias is not None and bias.shape != (out_features,):
            raise InputError(f"bias of {name} must be ({out_features},), got {bias.shape}")
        chosen = self.format
        if dtype is not None:
            chosen = linear_format(dtype, self.matmul_precision, self.path.formats)
        check_sparsity(sparsity, name=name)
        # Two of each four gain nothing here: see docs/cpu.md.
        if sparsity == "block" and chosen == "float32" and _BLOCK_FORMAT in self.path.formats:
            chosen = _BLOCK_FORMAT
        shape = (out_features, in_features)
        found = self.packed.find(name, chosen, shape) if self.packed else None
        background = self.background
        if background is not None and found is None and chosen in _LOOKED_AT:
            background.wait()
        if chosen == "float16" and found is None:
            check_float16(values, name)
        source = values.ctypes.data if found is None else found
        bias_at = 0 if bias is None else bias.ctypes.data
        layer = (self.path.index, chosen, source, out_features, in_features, bias_at)
        try:
            if found is not None:
                handle = self._native.adopt_linear(*layer)
            elif background is None:
                handle = self._native.pack_linear(*layer, None)
            else:
                background.keep(values)  # after a wait, which lets go of all
                handle = self._native.pack_linear(*layer, background.handle)
        except ValueError as error:
            raise DeviceError(f"{name}: {error}") from error
        if input_range is not None and chosen == "int8":
            self._native.set_input_range(handle, *input_range)
        if self.packed and found is None:
            self.packed.add(name, chosen, shape, handle)
        return CpuLinear(handle, out_features, in_features, chosen, self.packed)

    def prepare_layer_norm(
        self, weight: NDArray[Any], bias: NDArray[Any] | None, *, eps: float
    ) -> Any:
        """See `Ops.prepare_layer_norm`."""
        weight = np.array(weight, np.float32)
        bias = None if bias is None else np.array(bias, np.float32)
        if weight.ndim != 1 or (bias is not None and bias.shape != weight.shape):
            shapes = weight.shape, None if bias is None else bias.shape
            raise InputError(f"weight and bias of a norm must be vectors of one size, got {shapes}")
        address = 0 if bias is None else bias.ctypes.data
        return CpuLayerNorm(weight, bias, (weight.ctypes.data, address, eps))

    def prepare_embedding(self, weight: NDArray[Any]) -> Any:
        """See `Ops.prepare_embedding`: float32 stays where it is, in the mapped file."""
        table = np.ascontiguousarray(weight, np.float32)
        return CpuEmbedding(table, table.ctypes.data)

    # ---- transfer ------------------------------------------------------------------------------
    def upload(self, batch: Batch) -> Any:
        """See `Ops.upload`: the batch's own arrays are used."""
        skip = batch.skip
        if np.count_nonzero(skip) and (skip.min() < 0 or (skip >= batch.seqlens).any()):
            raise InputError("skip must leave at least one token of every text")
        arrays = (batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, skip)
        for array in arrays:
            if not array.flags.c_contiguous:
                words, positions, types, cu_seqlens, skip = map(np.ascontiguousarray, arrays)
                return self.upload(Batch(words, types, positions, cu_seqlens, skip))
        return CpuBatch(batch, batch.num_tokens, batch.num_seqs, arrays[:3], batch.cu_seqlens, skip)

    def download(self, array: CpuArray) -> FloatArray:
        """See `Ops.download`."""
        out = np.empty(array.shape, np.float32)
        if out.size:
            self._native.copy_columns(out, array.cols, 0, array.address, array.cols, array.rows)
        return out

    # ---- forward -------------------------------------------------------------------------------
    def forward(
        self,
        batch: Batch,
        function: Callable[[CpuOps, Any], tuple[Any, ...]],
        *,
        key: Hashable,
    ) -> tuple[FloatArray, ...]:
        """See `Ops.forward`: recorded at the first batch, then one call of the extension."""
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = Program(
                function, attention_format=self._attention_format
            )
        return program.run(self._running().handle, self.upload(batch))

    def embed(self, batch: CpuBatch, tables: Sequence[Any], norm: CpuLayerNorm | None) -> CpuArray:
        """See `Ops.embed`.

        Raises:
            InputError: an id outside its table.
        """
        state = self._running()
        hidden_size = check_embed(tables, norm)
        out = CpuArray(state.memory, batch.num_tokens, hidden_size)
        lookups: list[Any] = []
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
            raise_outside(outside, batch, [0 if t is None else len(t.weight) for t in tables])
        return out

    def linear(
        self,
        hidden: CpuArray,
        weights: CpuLinear,
        *,
        activation: Activation | None = None,
        residual: CpuArray | None = None,
    ) -> CpuArray:
        """See `Ops.linear`."""
        state = self._running()
        check_columns(hidden.cols, weights.in_features)
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
            ACTIVATIONS[activation],
        )
        return out

    def layer_norm(self, hidden: CpuArray, norm: CpuLayerNorm) -> CpuArray:
        """See `Ops.layer_norm`."""
        state = self._running()
        check_columns(hidden.cols, norm.weight.size)
        out = CpuArray(state.memory, hidden.rows, hidden.cols)
        self._native.layer_norm(
            state.handle, out.address, hidden.address, *norm.addresses, hidden.rows, hidden.cols
        )
        return out

    def attention(
        self,
        qkv: CpuArray,
        batch: CpuBatch,
        *,
        num_heads: int,
        head_dim: int,
        softmax_scale: float,
    ) -> CpuArray:
        """See `Ops.attention`; head_dim is a multiple of 8."""
        state = self._running()
        check_attention(qkv.cols, num_heads, head_dim, softmax_scale)
        if qkv.rows != batch.num_tokens:
            raise InputError(f"qkv must have {batch.num_tokens} rows, got {qkv.rows}")
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
            self._attention_format,
        )
        return out

    def pool(self, hidden: CpuArray, batch: CpuBatch, mode: PoolMode) -> CpuArray:
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
            POOL_MODES[mode],
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

    def _running(self) -> StreamState:
        if self._state is None:
            raise DeviceError("operators must be called inside `with ops.stream(...) as running`")
        return self._state


class _Stream:
    """The context of a stream; a generator's takes twice the time."""

    __slots__ = ("_alone", "_ops", "_running")

    def __init__(self, ops: CpuOps, alone: bool) -> None:
        self._ops = ops
        self._alone = alone

    def __enter__(self) -> CpuOps:
        state = self._ops._pool.take(self._alone)
        self._running = object.__new__(CpuOps)  # copy.copy, in a fifth of its time
        self._running.__dict__.update(self._ops.__dict__)
        self._running._state = state
        return self._running

    def __exit__(self, *error: object) -> None:
        state, self._running._state = self._running._state, None
        assert state is not None
        self._ops._pool.give_back(state)
