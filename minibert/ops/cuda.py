"""Ops on the CUDA kernels: on a GPU, or on the emulator without one.

One code path: where arrays live and what runs a kernel is the business of a `Device`
(`kernels/cuda/device.py`, `kernels/cuda/emulated.py`). Which kernel runs on which grid is decided
by the pure functions of `kernels/cuda/launch.py`. The operations are in
`cuda_operations.py`; this file is what surrounds them: weights, streams, graphs.

Inside a forward pass nothing is allocated (after the first pass of a size), nothing waits for the
device, and no library but our own kernels is called, so that a pass can be captured as a graph.

Numbers: `float32` computes in float32 throughout. `float16` and `bfloat16` store activations and
matrices in 16 bits, and compute sums, softmax, norms and everything pooled in float32. `int8`
quantizes the linear layers of the encoder (weights per channel; activations per token with a zero
point, computed from the token) and is `float16` in the rest. A text's bytes depend neither on its
place in a batch nor on the batch.
"""

from __future__ import annotations

import copy
import re
import threading
import traceback
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.errors import DeviceError, DeviceMemoryError, DeviceOptionError, EngineClosedError
from minibert.kernels.cuda import launch as launches
from minibert.kernels.cuda.device import CupyDevice, Device
from minibert.ops.cuda_batch import DeviceBatch, bucket_shape, exact_shape, pad_batch
from minibert.ops.cuda_operations import CudaOperations
from minibert.ops.cuda_stream import (
    ELEMENT_BYTES,
    CudaStream,
    DeviceArray,
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
from minibert.ops.interface import Array, ForwardShape

__all__ = ["DTYPES", "CudaOps", "DeviceArray", "cuda_ops"]

DTYPES = ("float32", "float16", "bfloat16", "int8")


class CudaOps(CudaOperations):
    """`Ops` on the CUDA kernels. Made by `cuda_ops`."""

    head_dim_multiple = PADDING
    num_streams: int
    num_idle_streams = 0
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
            raise DeviceOptionError(
                f"dtype must be one of {', '.join(DTYPES)} on {name}, got {dtype!r}"
            )
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

    def expect_batch(self) -> None:
        """See `Ops.expect_batch`: nothing sleeps."""

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
        input_range: tuple[float, float] | None = None,
    ) -> Linear:
        """See `Ops.prepare_linear`. int8 is for the encoder's layers; heads stay float16.

        A layer that is to be more exact than int8 (`dtype` is another one) is float16, too.
        2:4 sparse weights run on the sparse tensor cores in float16 and bfloat16 from sm_80 on.
        """
        encoder = re.match(r"layer\.\d+\.", name) is not None
        chosen = self.dtype if dtype is None else dtype
        quantized = chosen == "int8" and encoder and name not in self.float_layers
        return make_linear(
            self.device,
            weight,
            bias,
            dtype=self._float,
            quantized=quantized,
            name=name,
            sparsity=sparsity,
            input_range=input_range,
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

    capability = int(number or 80)
    if capability < 75:
        raise DeviceOptionError(f"device must be emulator:75 or later, got {device!r}")
    return CudaOps(
        EmulatedDevice(capability),
        name="emulator",
        dtype=dtype,
        num_streams=1,
        preferred_batch_tokens=256,
        batch_invariant=batch_invariant,
        float_layers=float_layers,
        graphs=False,
        reuse_memory=False,
    )
