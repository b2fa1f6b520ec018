"""One running batch on a CUDA device: its stream, scratch memory, staging buffers and graphs.

A `CudaStream` belongs to one thread at a time. It knows memory and order; which kernels run is the
business of `cuda.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.kernels.cuda.device import Device, Graph
from minibert.ops.arena import Arena, Block, OffsetAllocator
from minibert.ops.cuda_batch import BatchShape, DeviceBatch, stage
from minibert.ops.cuda_weights import PADDING, QUANTIZED_PADDING, pad_to
from minibert.ops.interface import ForwardShape, check_ids

__all__ = ["ELEMENT_BYTES", "CudaStream", "DeviceArray", "scratch_bytes"]

STORAGE = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "|i1"}
"""How an array of a dtype is held: bfloat16 as its bits."""

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

_MAX_GRAPHS = 64  # of one stream; the oldest makes room


class DeviceArray:
    """A matrix in the scratch memory of a stream; its memory is free again when it is dropped.

    Attributes:
        data: the device's array, (num_rows, row_stride), or (num_rows, 2) for scale and zero
            point.
        num_rows: rows.
        num_columns: columns that count; those up to row_stride are zero.
        row_stride: columns as stored.
        dtype: "float32", "float16", "bfloat16" or "int8".
        per_seq: a row is a sequence; otherwise it is a token.
        quantized: the same rows as int8, and scale and zero point of each, once they exist.
    """

    __slots__ = (
        "_arena",
        "_block",
        "data",
        "dtype",
        "num_columns",
        "num_rows",
        "per_seq",
        "quantized",
        "row_stride",
    )

    def __init__(
        self,
        data: Any,
        num_rows: int,
        num_columns: int,
        row_stride: int,
        dtype: str,
        per_seq: bool,
        arena: Arena,
        block: Block,
    ) -> None:
        """Hold the memory of `block`."""
        self.data = data
        self.num_rows, self.num_columns, self.row_stride = num_rows, num_columns, row_stride
        self.dtype, self.per_seq = dtype, per_seq
        self.quantized: tuple[DeviceArray, DeviceArray] | None = None
        self._arena, self._block = arena, block

    def __del__(self) -> None:
        """Give the memory back: work that still reads it stands earlier on the same stream."""
        self._arena.give(self._block)

    @property
    def shape(self) -> tuple[int, int]:
        """(num_rows, num_columns)."""
        return self.num_rows, self.num_columns


@dataclass(slots=True)
class _Captured:
    """A graph, what it leaves behind, and the tables that it reads."""

    graph: Graph
    outputs: tuple[DeviceArray, ...]
    table_rows: list[int | None]


class CudaStream:
    """Everything that one running batch has to itself."""

    def __init__(self, device: Device, *, block_m: int, reuse_memory: bool) -> None:
        """Make a stream.

        Args:
            device: where it runs.
            block_m: queries of one block of the attention kernel.
            reuse_memory: as in `Arena`.
        """
        self.device = device
        self.handle = device.new_stream()
        self._graphs: dict[Hashable, _Captured] = {}
        self.arena = Arena(device.empty, reuse_memory, self._forget_graphs)
        self.batch: DeviceBatch | None = None
        self._block_m = block_m
        self._pinned_in = np.empty(0, np.int32)
        self._pinned_out = np.empty(0, np.uint8)
        self._staging: Any = None
        self._needs: dict[Hashable, int] = {}

    def close(self) -> None:
        """Give back graphs and memory."""
        self._graphs.clear()
        self.arena.clear()
        self._staging, self._pinned_in = None, np.empty(0, np.int32)

    # ---- transfer ----------------------------------------------------------------------------
    def upload(
        self, batch: Batch, padded: Batch, cu_seqlens: NDArray[np.int32], shape: BatchShape
    ) -> DeviceBatch:
        """Begin a batch: stage it and start the one copy.

        Args:
            batch: the real one.
            padded: the same with fillers, or `batch` itself.
            cu_seqlens: (shape.num_seqs + 1,) int32, those of `padded`, empty sequences at the end.
            shape: sizes on the device.
        """
        # The pinned buffer and the arrays of the batch before may still be in use.
        self.device.synchronize(self.handle)
        size = shape.staging_size
        if self._pinned_in.size < size:
            self._forget_graphs()  # they read the staging buffer that is given up here
            self._staging = None
            self._staging = self.device.empty(4 * size)
            self._pinned_in = self.device.empty_pinned(4 * size).view(np.int32)
        self.arena.reset(shape.num_tokens)
        staged = self._pinned_in[:size]
        stage(staged, padded, cu_seqlens, shape, self._block_m)
        self.device.copy_in(self._staging, staged.view(np.uint8), self.handle)
        begins = np.cumsum((0, *shape.sizes))[:-1].tolist()
        extents = (
            (shape.num_tokens,),
            (shape.num_tokens,),
            (shape.num_tokens,),
            (shape.num_seqs + 1,),
            (shape.num_seqs,),
            (shape.num_tiles, 2),
        )
        parts = [
            self.device.view(self._staging, 4 * begin, extent, "<i4")
            for begin, extent in zip(begins, extents, strict=True)
        ]
        self.batch = DeviceBatch(shape, batch, *parts)
        return self.batch

    def download(self, array: DeviceArray) -> NDArray[np.float32]:
        """Copy an array to the host as float32, without fillers; waits for it."""
        nbytes = array.num_rows * array.row_stride * ELEMENT_BYTES[array.dtype]
        if self._pinned_out.size < nbytes:
            self._pinned_out = self.device.empty_pinned(nbytes)
        raw = self._pinned_out[:nbytes]
        if nbytes:
            self.device.copy_out(raw, array.data, self.handle)
        self.device.synchronize(self.handle)
        stored = raw.view(STORAGE[array.dtype]).reshape(array.num_rows, array.row_stride)
        num_rows = array.num_rows
        if self.batch is not None:
            source = self.batch.source
            real = source.num_seqs if array.per_seq else source.num_tokens
            num_rows = min(num_rows, real)
        rows = stored[:num_rows, : array.num_columns]
        if array.dtype == "bfloat16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)

    # ---- memory ------------------------------------------------------------------------------
    def new(
        self, num_rows: int, num_columns: int, dtype: str, *, per_seq: bool, padded: bool = True
    ) -> DeviceArray:
        """A matrix without content; rows are padded to what 16-byte reads need."""
        multiple = QUANTIZED_PADDING if dtype == "int8" else PADDING
        stride = pad_to(num_columns, multiple) if padded else num_columns
        block = self.arena.take(num_rows * stride * ELEMENT_BYTES[dtype])
        data = self.device.view(block.memory, block.start, (num_rows, stride), STORAGE[dtype])
        return DeviceArray(data, num_rows, num_columns, stride, dtype, per_seq, self.arena, block)

    # ---- graphs ------------------------------------------------------------------------------
    def run(
        self,
        key: Hashable,
        uploaded: DeviceBatch,
        function: Callable[[], tuple[DeviceArray, ...]],
    ) -> tuple[DeviceArray, ...]:
        """Put a forward pass on the stream: run it, capture it, or replay what was captured.

        Args:
            key: the pass and the sizes of its batch.
            uploaded: the batch.
            function: makes the launches and returns the outputs; the same launches whenever the
                key is the same.
        """
        captured = self._graphs.get(key)
        if captured is not None:
            check_ids(uploaded.source, captured.table_rows)
            captured.graph.launch(self.handle)
            return captured.outputs
        if self._needs.get(key, self.arena.slab_bytes + 1) > self.arena.slab_bytes:
            # Loads the kernels, and tells the arena how much the pass needs.
            outputs = function()
            self._needs[key] = self.arena.high_water
            return outputs
        made: list[tuple[DeviceArray, ...]] = []
        self.arena.fixed = True
        try:
            graph = self.device.capture(self.handle, lambda: made.append(function()))
        finally:
            self.arena.fixed = False
        while len(self._graphs) >= _MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = _Captured(graph, made[0], uploaded.table_rows)
        graph.launch(self.handle)
        return made[0]

    def _forget_graphs(self) -> None:
        """Memory moves: addresses in the graphs are void, and their outputs hold the old memory."""
        self._graphs.clear()


def scratch_bytes(shape: ForwardShape, *, element_bytes: int, quantized: bool, block_m: int) -> int:
    """Bytes of one forward pass: the arena's own rule on the arrays that a layer makes and drops.

    Args:
        shape: sizes of the batch and the model.
        element_bytes: of an activation.
        quantized: whether activations have int8 companions.
        block_m: queries of one block of the attention kernel.
    """
    line = OffsetAllocator()
    tokens = shape.num_tokens

    def take(columns: int, has_companion: bool) -> list[tuple[int, int]]:
        sizes = [tokens * pad_to(columns, PADDING) * element_bytes]
        if has_companion and quantized:
            sizes += [tokens * pad_to(columns, QUANTIZED_PADDING), 8 * tokens]
        return [(line.take(size), size) for size in sizes]

    def give(*arrays: list[tuple[int, int]]) -> None:
        for array in arrays:
            for offset, size in array:
                line.give(offset, size)

    hidden = take(shape.hidden_size, True)
    for _ in range(2):
        qkv = take(shape.qkv_size, False)
        context = take(shape.qkv_size // 3, True)
        summed = take(shape.hidden_size, False)
        attended = take(shape.hidden_size, True)
        give(qkv, context, summed)
        wide = take(shape.intermediate_size, True)
        summed = take(shape.hidden_size, False)
        after = take(shape.hidden_size, True)
        give(wide, summed, attended, hidden)
        hidden = after
    for _ in range(4):  # pooled vectors, float32: pooling, dense, norm, their conversions
        line.take(shape.num_seqs * pad_to(shape.hidden_size, PADDING) * 4)
    tiles = tokens // block_m + shape.num_seqs
    staging = 4 * BatchShape(tokens, shape.num_seqs, tiles).staging_size
    return line.high_water + staging
