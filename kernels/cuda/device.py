"""What runs kernels: a GPU through CuPy. `emulated.py` has the same methods without a GPU.

A device hands out memory, streams and pinned buffers, copies, launches and captures graphs; it
knows nothing of models. Everything here is asynchronous unless it says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minibert.errors import DeviceError, DeviceMemoryError, MissingDependencyError
from minibert.kernels.cuda import nvrtc
from minibert.kernels.cuda.launch import Launch, Target, target_for
from minibert.kernels.cuda.loader import Product, load_code

__all__ = ["Argument", "CupyDevice", "Device", "Graph", "choose_code", "scalar"]

Argument = Any
"""A device array, None for a null pointer, an int (int32) or a float (float32)."""


class Graph(Protocol):
    """A captured sequence of launches."""

    def launch(self, stream: Any) -> None:
        """Run all of it, in order, on a stream."""
        ...


class Device(Protocol):
    """One machine that runs kernels."""

    name: str
    """Name for people, such as "NVIDIA H100 80GB HBM3" or "emulator of sm_80"."""
    target: Target

    def empty(self, nbytes: int) -> Any:
        """Memory of the device, as an array of `nbytes` uint8 with no particular content.

        Raises:
            DeviceMemoryError: there is not that much.
        """
        ...

    def view(self, memory: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        """An array inside memory from `empty`, `offset` bytes behind its start."""
        ...

    def to_device(self, array: NDArray[Any]) -> Any:
        """A copy of a host array that stays; synchronous."""
        ...

    def empty_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that the device copies from and to by itself."""
        ...

    def new_stream(self) -> Any:
        """An order of work."""
        ...

    def use(self, stream: Any) -> AbstractContextManager[None]:
        """Make the stream the one that `launch` and the copies of this thread go to."""
        ...

    def copy_in(self, to: Any, source: NDArray[np.uint8], stream: Any) -> None:
        """Copy pinned memory to the device; `source` must not change until `synchronize`."""
        ...

    def copy_out(self, to: NDArray[np.uint8], source: Any, stream: Any) -> None:
        """Copy device memory to pinned memory; complete after `synchronize`."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream has done all its work."""
        ...

    def launch(self, launch: Launch, *arguments: Argument) -> None:
        """Put a kernel on the current stream."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Call `work`, keeping its launches as a graph instead of running them."""
        ...

    def close(self) -> None:
        """Give back memory that is not in use."""
        ...


def choose_code(compute_capability: int, supported: Sequence[int]) -> tuple[Product, str]:
    """What to compile for a device with this compiler.

    A cubin runs on its own architecture and on later ones of the same generation; for a generation
    that the compiler does not know, the driver translates PTX of the newest one it does.

    Args:
        compute_capability: of the device, 86.
        supported: architectures of the compiler.

    Raises:
        DeviceError: the compiler knows only newer architectures.
    """
    older = [arch for arch in supported if arch <= compute_capability]
    if not older:
        raise DeviceError(
            f"the CUDA compiler must support compute capability {compute_capability / 10:.1f}, "
            f"it starts at {min(supported) / 10:.1f}: install an older nvidia-cuda-nvrtc"
        )
    best = max(older)
    product: Product = "cubin" if best // 10 == compute_capability // 10 else "ptx"
    return product, f"sm_{best}"


class CupyDevice:
    """A GPU through CuPy."""

    def __init__(self, index: int = 0) -> None:
        """Open the GPU of this number.

        Raises:
            MissingDependencyError: CuPy or NVRTC is not installed.
            DeviceError: there is no usable driver or no such GPU; the message says which.
        """
        self._cupy = _import_cupy()
        count = _device_count(self._cupy)
        if not 0 <= index < count:
            raise DeviceError(
                f"device must be cuda:0 to cuda:{count - 1} on this machine, got cuda:{index}"
            )
        self._device = self._cupy.cuda.Device(index)
        self.index = index
        attributes = self._device.attributes
        self.target = target_for(
            int(self._device.compute_capability),
            int(attributes["MultiProcessorCount"]),
            attributes.get("MaxSharedMemoryPerBlockOptin"),
        )
        properties = self._cupy.cuda.runtime.getDeviceProperties(index)
        self.name = properties["name"].decode()
        self._product, self._arch = choose_code(
            self.target.compute_capability, nvrtc.supported_architectures()
        )
        self._functions: dict[tuple[str, str], Any] = {}

    def empty(self, nbytes: int) -> Any:
        """See `Device.empty`."""
        with self._device:
            try:
                return self._cupy.empty(nbytes, np.uint8)
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                free, total = self._cupy.cuda.runtime.memGetInfo()
                raise DeviceMemoryError(
                    f"{self.name} must have {nbytes} bytes free, it has {free} of {total}: "
                    "lower max_batch_tokens or memory_limit"
                ) from error

    def view(self, memory: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        """See `Device.view`."""
        return self._cupy.ndarray(shape, dtype, memptr=memory.data + offset)

    def to_device(self, array: NDArray[Any]) -> Any:
        """See `Device.to_device`."""
        contiguous = np.ascontiguousarray(array)
        memory = self.empty(contiguous.nbytes)
        view = self.view(memory, 0, contiguous.shape, contiguous.dtype.str)
        with self._device:
            view.set(contiguous)
            # The last bytes may still be under way, and our streams do not wait for this one.
            self._device.synchronize()
        return view

    def empty_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See `Device.empty_pinned`."""
        with self._device:
            memory = self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1))
        return np.frombuffer(memory, np.uint8)[:nbytes]

    def new_stream(self) -> Any:
        """See `Device.new_stream`."""
        with self._device:
            return self._cupy.cuda.Stream(non_blocking=True)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        """See `Device.use`."""
        with self._device, stream:
            yield

    def copy_in(self, to: Any, source: NDArray[np.uint8], stream: Any) -> None:
        """See `Device.copy_in`."""
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(
            to.data.ptr,
            source.ctypes.data,
            source.nbytes,
            runtime.memcpyHostToDevice,
            stream.ptr,
        )

    def copy_out(self, to: NDArray[np.uint8], source: Any, stream: Any) -> None:
        """See `Device.copy_out`."""
        runtime = self._cupy.cuda.runtime
        runtime.memcpyAsync(
            to.ctypes.data, source.data.ptr, to.nbytes, runtime.memcpyDeviceToHost, stream.ptr
        )

    def synchronize(self, stream: Any) -> None:
        """See `Device.synchronize`."""
        stream.synchronize()

    def launch(self, launch: Launch, *arguments: Argument) -> None:
        """See `Device.launch`."""
        function = self._functions.get((launch.source, launch.kernel))
        if function is None:
            function = self._load(launch)
        function(
            launch.grid_size,
            (launch.block_size, 1, 1),
            tuple(map(scalar, arguments)),
            shared_mem=launch.smem_bytes,
        )

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """See `Device.capture`."""
        stream.begin_capture()
        try:
            work()
        except BaseException:
            # Ends the capture; what it would give is of no use.
            stream.end_capture()
            raise
        graph: Graph = stream.end_capture()
        return graph

    def close(self) -> None:
        """See `Device.close`."""
        with self._device:
            self._functions.clear()
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()

    def _load(self, launch: Launch) -> Any:
        code = load_code(
            launch.source, launch.kernel, arch=self._arch, product=self._product
        ).on_disk()
        with self._device:
            function = self._cupy.RawModule(path=str(code.path)).get_function(code.symbol)
            if launch.smem_bytes > 48 * 1024:
                function.max_dynamic_shared_size_bytes = launch.smem_bytes
        self._functions[launch.source, launch.kernel] = function
        return function


_NULL = np.uint64(0)


def scalar(argument: Argument) -> Argument:
    """An argument as CuPy and the emulator pass it."""
    if argument is None:
        return _NULL
    if isinstance(argument, int):
        return np.int32(argument)
    if isinstance(argument, float):
        return np.float32(argument)
    return argument


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise MissingDependencyError(
            "device='cuda' needs CuPy, which is not installed or cannot be loaded "
            f"({error}): pip install 'minibert-engine[cuda13]' (or cuda12), or use device='cpu'"
        ) from error
    return cupy


@functools.cache
def _device_count(cupy: Any) -> int:
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"device='cuda' needs an NVIDIA driver that works with this CuPy ({error}); "
            "install or update it, or use device='cpu'"
        ) from error
    if count == 0:
        raise DeviceError(
            "device='cuda' needs a GPU: the driver works and shows none "
            "(CUDA_VISIBLE_DEVICES may hide it); use device='cpu'"
        )
    return count
