"""Ops on the CUDA kernels: on a GPU, or on the emulator without one.

One code path: where arrays live and what runs a kernel is the business of a `Device`
(`kernels/cuda/device.py`, `kernels/cuda/emulated.py`). Which kernel runs on which grid is decided
by the pure functions of `kernels/cuda/launch.py`. This file decides which operations there are.

Inside a forward pass nothing is allocated (after the first pass of a size), nothing waits for the
device, and no library but our own kernels is called, so that a pass can be captured as a graph.

Numbers: `float32` computes in float32 throughout. `float16` and `bfloat16` store activations and
matrices in 16 bits, and compute sums, softmax, norms and everything pooled in float32. `int8`
quantizes the linear layers of the encoder (weights per channel, activations per token, computed
from the token) and is `float16` in the rest. A text's bytes depend neither on its place in a batch
nor on the batch.
"""

from __future__ import annotations

import copy
import re
import threading
import traceback
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.errors import DeviceError, DeviceMemoryError, EngineClosedError, InputError
from minibert.kernels.cuda import launch as launches
from minibert.kernels.cuda.device import CupyDevice, Device
from minibert.kernels.cuda.launch import Launch
from minibert.ops.cuda_batch import DeviceBatch, bucket_shape, exact_shape, pad_batch
from minibert.ops.cuda_stream import (
    ELEMENT_BYTES,
    STORAGE,
    CudaStream,
    DeviceArray,
    check_ids,
    scratch_bytes,
)
from minibert.ops.cuda_weights import (
    PADDING,
    Embedding,
    LayerNorm,
    Linear,
    make_embedding,
    make_layer_norm,
    make_linear,
)
from minibert.ops.interface import Activation, Array, ForwardShape, PoolMode

__all__ = ["DTYPES", "CudaOps", "DeviceArray", "cuda_ops"]

DTYPES = ("float32", "float16", "bfloat16", "int8")


class CudaOps:
    """`Ops` on the CUDA kernels. Made by `cuda_ops`."""

    head_dim_multiple = PADDING
    num_streams: int
    preferred_batch_tokens: int

    def __init__(
        self,
        device: Device,
        *,
        name: str,
        dtype: str,
        num_streams: int = 2,
        preferred_batch_tokens: int = 16384,
        batch_invariant: bool = True,
        float_layers: Collection[str] = (),
        graphs: bool = True,
        reuse_memory: bool = True,
    ) -> None:
        """Compute on a device.

        Args:
            device: where.
            name: as `Ops.name`.
            dtype: one of `DTYPES`.
            num_streams: batches that may run at once.
            preferred_batch_tokens: as `Ops.preferred_batch_tokens`.
            batch_invariant: False lets batches of at most 32 tokens take the kernel that splits K
                over warps, which is quicker and differs in the last bits of float16 and bfloat16.
            float_layers: linear layers that stay float16 in int8, such as "layer.0.qkv".
            graphs: let `forward` capture and replay graphs.
            reuse_memory: False gives every array memory of its own, so that the emulator sees
                reads of what was never written.

        Raises:
            DeviceError: a dtype that there is not, or not on this device.
        """
        if dtype not in DTYPES:
            raise DeviceError(f"dtype must be one of {', '.join(DTYPES)} on {name}, got {dtype!r}")
        self.device = device
        self.name, self.dtype = name, dtype
        self.num_streams, self.preferred_batch_tokens = num_streams, preferred_batch_tokens
        self.batch_invariant, self.graphs = batch_invariant, graphs
        self.float_layers = frozenset(float_layers)
        self._reuse_memory = reuse_memory
        self._float = "float16" if dtype == "int8" else dtype
        launches.quantize_rows(device.target, self._float, num_tokens=1)  # refuses the dtype
        self._block_m = launches.attention_block_m(self._float)
        self._idle: list[CudaStream] = []
        self._lock = threading.Lock()
        self._closed = False
        self._state: CudaStream | None = None

    # ---- streams -----------------------------------------------------------------------------
    @contextmanager
    def stream(self, *, alone: bool) -> Iterator[CudaOps]:
        """See `Ops.stream`. A second `upload` in one stream ends the arrays of the first."""
        if self._closed:
            raise EngineClosedError("the device must be open, it was closed: load the model again")
        with self._lock:
            state = self._idle.pop() if self._idle else None
        state = state or self.new_stream()
        bound = self.bound_to(state)
        try:
            with self.device.use(state.handle):
                yield bound
                self.device.synchronize(state.handle)
        finally:
            bound._state = None
            state.batch = None
            with self._lock:
                if not self._closed:
                    self._idle.append(state)

    def new_stream(self) -> CudaStream:
        """A stream of its own, for callers that keep one beyond a batch."""
        return CudaStream(self.device, block_m=self._block_m, reuse_memory=self._reuse_memory)

    def bound_to(self, state: CudaStream) -> CudaOps:
        """The operations on a stream; its caller enters `device.use(state.handle)`."""
        bound = copy.copy(self)
        bound._state = state
        return bound

    def scratch_bytes(self, shape: ForwardShape) -> int:
        """See `Ops.scratch_bytes`."""
        return scratch_bytes(
            shape,
            element_bytes=ELEMENT_BYTES[self._float],
            quantized=self.dtype == "int8",
            block_m=self._block_m,
        )

    def close(self) -> None:
        """See `Ops.close`."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for state in idle:
            state.close()
        self.device.close()

    # ---- weights -----------------------------------------------------------------------------
    def prepare_linear(
        self,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
    ) -> Linear:
        """See `Ops.prepare_linear`. int8 is for the encoder's layers; heads stay float16.

        A layer that is to be more exact than int8 (`dtype` is another one) is float16, too.
        """
        encoder = re.match(r"layer\.\d+\.", name) is not None
        chosen = self.dtype if dtype is None else dtype
        quantized = chosen == "int8" and encoder and name not in self.float_layers
        return make_linear(
            self.device, weight, bias, dtype=self._float, quantized=quantized, name=name
        )

    def prepare_layer_norm(
        self, weight: NDArray[Any], bias: NDArray[Any] | None, *, eps: float
    ) -> LayerNorm:
        """See `Ops.prepare_layer_norm`; weight and bias stay float32."""
        return make_layer_norm(self.device, weight, bias, eps=eps)

    def prepare_embedding(self, weight: NDArray[Any]) -> Embedding:
        """See `Ops.prepare_embedding`."""
        return make_embedding(self.device, weight, dtype=self._float)

    # ---- transfer ----------------------------------------------------------------------------
    def upload(self, batch: Batch) -> DeviceBatch:
        """See `Ops.upload`: one copy, from pinned memory, not waited for."""
        shape = exact_shape(batch, self._block_m)
        return self._running().upload(batch, batch, batch.cu_seqlens, shape)

    def download(self, array: DeviceArray) -> NDArray[np.float32]:
        """See `Ops.download`: one copy; waits for everything before it on the stream."""
        return self._running().download(array)

    def forward(
        self,
        batch: Batch,
        function: Callable[[CudaOps, DeviceBatch], tuple[Array, ...]],
        *,
        key: Hashable,
    ) -> tuple[NDArray[np.float32], ...]:
        """Upload, compute and download; from the second batch of a bucket on, by one graph.

        The bytes are those of `upload`, `function` and `download` called one by one: the batch is
        filled up to the bucket with sequences that no other sequence sees.

        Args:
            batch: to compute.
            function: forward pass, from (ops, uploaded batch) to arrays; the same operations on
                the same weights whenever it is called with the same key.
            key: what `function` computes.

        Returns:
            The downloaded arrays, rows of the batch only.
        """
        try:
            return self._forward(batch, function, key)
        except DeviceMemoryError as error:
            # The frames of the pass hold its arrays; who catches this wants their memory back.
            traceback.clear_frames(error.__traceback__)
            raise

    def _forward(
        self,
        batch: Batch,
        function: Callable[[CudaOps, DeviceBatch], tuple[Array, ...]],
        key: Hashable,
    ) -> tuple[NDArray[np.float32], ...]:
        stream = self._running()
        if not self.graphs or batch.num_tokens == 0:
            uploaded = self.upload(batch)
            return tuple(self.download(array) for array in function(self, uploaded))
        shape = bucket_shape(batch, self._block_m)
        padded, cu_seqlens = pad_batch(batch, shape)
        uploaded = stream.upload(batch, padded, cu_seqlens, shape)
        outputs = stream.run((key, shape), uploaded, lambda: function(self, uploaded))
        return tuple(self.download(array) for array in outputs)

    # ---- forward -----------------------------------------------------------------------------
    def embed(
        self, batch: DeviceBatch, tables: Sequence[Embedding | None], norm: LayerNorm | None
    ) -> DeviceArray:
        """See `Ops.embed`."""
        word, position, token_type = tables
        if word is None:
            raise InputError("tables must begin with the word table, got None")
        batch.table_rows = [table.num_rows if table else None for table in tables]
        check_ids(batch, batch.table_rows)
        out = self._new(batch.shape.num_tokens, word.width, self._float)
        quantized = self._new_quantized(out) if self.dtype == "int8" else None
        self._launch(
            launches.embed_layer_norm(
                self.device.target,
                self._float,
                num_tokens=out.num_rows,
                hidden_size=word.width,
            ),
            out.data,
            *_data(quantized),
            batch.input_ids,
            batch.position_ids,
            batch.token_type_ids,
            word.table,
            position.table if position else None,
            token_type.table if token_type else None,
            norm.weight if norm else None,
            norm.bias if norm else None,
            out.num_rows,
            word.width,
            quantized[0].row_stride if quantized else 0,
            norm.eps if norm else 0.0,
        )
        return out

    def linear(
        self,
        hidden: DeviceArray,
        weights: Linear,
        *,
        activation: Activation | None = None,
        residual: DeviceArray | None = None,
    ) -> DeviceArray:
        """See `Ops.linear`."""
        if hidden.num_columns != weights.in_features:
            raise InputError(
                f"hidden must have in_features = {weights.in_features} columns, "
                f"got {hidden.num_columns}"
            )
        hidden = self._converted(hidden, self._float)
        residual = self._converted(residual, self._float) if residual is not None else None
        out = self._new(hidden.num_rows, weights.out_features, self._float, hidden.per_seq)
        if residual is not None and residual.shape != out.shape:
            raise InputError(f"residual must have the shape {out.shape}, got {residual.shape}")
        quantized = weights.weight_scale is not None
        narrow = (
            hidden.num_rows <= launches.NARROW_ROWS
            and self._float != "float32"
            and (quantized or not self.batch_invariant)
        )
        choose = launches.gemm_narrow if narrow and hidden.num_rows else launches.gemm
        launch = choose(
            self.device.target,
            self._float,
            activation,
            num_rows=hidden.num_rows,
            out_features=weights.stored_out,
            in_features=weights.stored_in,
            quantized=quantized,
        )
        operand, act_scale = self._quantized(hidden) if quantized else (hidden, None)
        scales: tuple[Any, ...] = ()
        if narrow or quantized:
            scales = (act_scale.data if act_scale else None, weights.weight_scale)
        self._launch(
            launch,
            out.data,
            operand.data,
            weights.weight,
            *scales,
            weights.bias,
            residual.data if residual else None,
            out.num_rows,
            weights.stored_out,
            weights.stored_in,
        )
        return out

    def layer_norm(
        self, hidden: DeviceArray, norm: LayerNorm, *, residual: DeviceArray | None = None
    ) -> DeviceArray:
        """See `Ops.layer_norm`; the kernel can add a residual first."""
        hidden = self._converted(_dense(hidden), self._float)
        out = self._new(hidden.num_rows, hidden.num_columns, self._float, hidden.per_seq)
        quantized = self._new_quantized(out) if self.dtype == "int8" else None
        self._launch(
            launches.layer_norm(
                self.device.target,
                self._float,
                num_tokens=hidden.num_rows,
                hidden_size=hidden.num_columns,
            ),
            out.data,
            *_data(quantized),
            hidden.data,
            _dense(residual).data if residual else None,
            norm.weight,
            norm.bias,
            hidden.num_rows,
            hidden.num_columns,
            quantized[0].row_stride if quantized else 0,
            norm.eps,
        )
        return out

    def attention(
        self,
        qkv: DeviceArray,
        batch: DeviceBatch,
        *,
        num_heads: int,
        head_dim: int,
        softmax_scale: float,
    ) -> DeviceArray:
        """See `Ops.attention`."""
        if qkv.num_columns != 3 * num_heads * head_dim:
            raise InputError(
                f"qkv must have 3 * num_heads * head_dim = {3 * num_heads * head_dim} columns, "
                f"got {qkv.num_columns}"
            )
        if not softmax_scale > 0:
            raise InputError(f"softmax_scale must be positive, got {softmax_scale}")
        launch = launches.attention(
            self.device.target,
            self._float,
            num_tiles=batch.shape.num_tiles,
            num_heads=num_heads,
            head_dim=head_dim,
            row_stride=qkv.row_stride,
        )
        out = self._new(qkv.num_rows, num_heads * head_dim, self._float)
        self._launch(
            launch,
            out.data,
            qkv.data,
            batch.cu_seqlens,
            batch.tiles,
            num_heads,
            head_dim,
            qkv.row_stride,
            float(softmax_scale),
        )
        return out

    def pool(self, hidden: DeviceArray, batch: DeviceBatch, mode: PoolMode) -> DeviceArray:
        """See `Ops.pool`; sums and result are float32."""
        hidden = _dense(hidden)
        launch = launches.pool(
            self.device.target,
            hidden.dtype,
            mode,
            num_seqs=batch.shape.num_seqs,
            hidden_size=hidden.num_columns,
        )
        out = self._new(batch.shape.num_seqs, hidden.num_columns, "float32", True)
        self._launch(
            launch, out.data, hidden.data, batch.cu_seqlens, batch.skip, hidden.num_columns
        )
        return out

    def normalize(self, rows: DeviceArray) -> DeviceArray:
        """See `Ops.normalize`; the result is float32."""
        out = self._new(rows.num_rows, rows.num_columns, "float32", rows.per_seq)
        self._launch(
            launches.normalize(self.device.target, rows.dtype, num_rows=rows.num_rows),
            out.data,
            rows.data,
            rows.num_rows,
            rows.num_columns,
            out.row_stride,
            rows.row_stride,
        )
        return out

    def concatenate(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        """See `Ops.concatenate`; the result is float32 if any part is."""
        if len(arrays) == 1:
            return arrays[0]
        dtypes = {array.dtype for array in arrays}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        columns = sum(array.num_columns for array in arrays)
        out = self._new(arrays[0].num_rows, columns, dtype, arrays[0].per_seq)
        begin = 0
        for array in arrays:
            last = begin + array.num_columns == columns
            self._copy_columns(out, array, begin, (out.row_stride if last else begin) - begin)
            begin += array.num_columns
        return out

    # ---- parts -------------------------------------------------------------------------------
    def _running(self) -> CudaStream:
        if self._state is None:
            raise DeviceError("an operation must stand inside `with ops.stream(...) as ops:`")
        return self._state

    def _new(
        self, num_rows: int, num_columns: int, dtype: str, per_seq: bool = False
    ) -> DeviceArray:
        return self._running().new(num_rows, num_columns, dtype, per_seq=per_seq)

    def _new_quantized(self, array: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Room for the int8 companion of an array: the same rows, and their scales."""
        rows = array.num_rows
        array.quantized = (
            self._new(rows, array.num_columns, "int8", array.per_seq),
            self._running().new(rows, 1, "float32", per_seq=array.per_seq, padded=False),
        )
        return array.quantized

    def _quantized(self, hidden: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """The int8 companion of an array, made by its producer or now."""
        if hidden.quantized is not None:
            return hidden.quantized
        made = self._new_quantized(hidden)
        self._launch(
            launches.quantize_rows(self.device.target, hidden.dtype, num_tokens=hidden.num_rows),
            *_data(made),
            hidden.data,
            hidden.num_rows,
            hidden.row_stride,
            hidden.row_stride,
            made[0].row_stride,
        )
        return made

    def _converted(self, array: DeviceArray, dtype: str) -> DeviceArray:
        """The array in another dtype, or itself."""
        if array.dtype == dtype:
            return array
        out = self._new(array.num_rows, array.num_columns, dtype, array.per_seq)
        self._copy_columns(out, array, 0, out.row_stride)
        return out

    def _copy_columns(self, out: DeviceArray, array: DeviceArray, begin: int, written: int) -> None:
        """Put an array into columns of another, and zeros up to `written` columns behind it."""
        written = max(written, array.num_columns)
        offset = self.device.view(
            out.data,
            begin * ELEMENT_BYTES[out.dtype],
            (max(out.num_rows * out.row_stride - begin, 0),),
            STORAGE[out.dtype],
        )
        self._launch(
            launches.copy_columns(
                self.device.target,
                out.dtype,
                array.dtype,
                num_rows=array.num_rows,
                written_columns=written,
            ),
            offset,
            array.data,
            array.num_rows,
            array.num_columns,
            written,
            out.row_stride,
            array.row_stride,
        )

    def _launch(self, launch: Launch, *arguments: Any) -> None:
        if all(launch.grid_size):  # an empty batch has nothing to launch
            self.device.launch(launch, *arguments)


def _data(pair: tuple[DeviceArray, DeviceArray] | None) -> tuple[Any, Any]:
    return (pair[0].data, pair[1].data) if pair else (None, None)


def _dense(array: DeviceArray) -> DeviceArray:
    if array.row_stride != array.num_columns:
        raise InputError(
            f"hidden_size must be a multiple of {PADDING} on CUDA, got {array.num_columns}; "
            "use device='cpu'"
        )
    return array


def cuda_ops(
    device: str = "cuda",
    dtype: str = "float16",
    *,
    batch_invariant: bool = True,
    float_layers: Collection[str] = (),
    graphs: bool = True,
) -> CudaOps:
    """Ops on a GPU, or on the emulator.

    Args:
        device: "cuda", "cuda:1", "emulator", or "emulator:90" for another architecture.
        dtype: one of `DTYPES`.
        batch_invariant: as in `CudaOps`.
        float_layers: as in `CudaOps`.
        graphs: as in `CudaOps`.

    Raises:
        DeviceError: no usable GPU; the message names what is missing.
        MissingDependencyError: CuPy or NVRTC is not installed.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "emulator") or (number and not number.isdigit()):
        raise DeviceError(
            f"device must be cuda, cuda:<number>, emulator or emulator:<capability>, got {device!r}"
        )
    if kind == "cuda":
        gpu = CupyDevice(int(number or 0))
        return CudaOps(
            gpu,
            name="cuda",
            dtype=dtype,
            batch_invariant=batch_invariant,
            float_layers=float_layers,
            graphs=graphs,
        )
    from minibert.kernels.cuda.emulated import EmulatedDevice

    return CudaOps(
        EmulatedDevice(int(number or 80)),
        name="emulator",
        dtype=dtype,
        num_streams=1,
        preferred_batch_tokens=256,
        batch_invariant=batch_invariant,
        float_layers=float_layers,
        graphs=False,
        reuse_memory=False,
    )
