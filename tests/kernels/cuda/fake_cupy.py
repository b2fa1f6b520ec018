"""As much of CuPy as `CupyDevice` calls, over NumPy and the emulator, and strict about order.

Signatures and names are CuPy 14's. What CuPy or the driver would refuse is refused here too:
waiting, allocating or loading code while a stream is captured, copies between wrong places, a
launch outside of the device, or with memory, code or a stream of another one. What CuPy keeps for
each thread, the current device and stream, is kept for each thread.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minibert.kernels.emulator import Kernel, Module, device_array


class OutOfMemoryError(MemoryError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class Pointer:
    """MemoryPointer: arithmetic gives pointers into the same memory."""

    def __init__(self, memory: Any, device: int, offset: int = 0) -> None:
        self.memory, self.device, self.offset = memory, device, offset
        self.ptr = memory.__array_interface__["data"][0] + offset

    def __add__(self, offset: int) -> Pointer:
        return Pointer(self.memory, self.device, self.offset + offset)


class Array:
    """ndarray: memory of the device, which the host cannot read by indexing."""

    def __init__(self, shape: Any, dtype: Any, memptr: Pointer) -> None:
        self.shape, self.dtype, self.data = tuple(shape), np.dtype(dtype), memptr
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize
        whole = memptr.memory[memptr.offset : memptr.offset + self.nbytes]
        self.host = whole.view(self.dtype).reshape(self.shape)

    def set(self, array: Any) -> None:
        assert array.flags.c_contiguous
        assert array.dtype == self.dtype and array.shape == self.shape
        self.host[...] = array


class Stream:
    """Work is done at once, or recorded while the stream is captured."""

    def __init__(self, cupy: FakeCupy, non_blocking: bool = False) -> None:
        assert non_blocking, "the null stream would wait for every other one"
        self.cupy, self.ptr, self.device = cupy, id(self), cupy.device
        self.recording: list[Callable[[], None]] | None = None
        self.previous: list[Stream | None] = []

    def __enter__(self) -> Stream:
        self.previous.append(self.cupy.current)
        self.cupy.current = self
        return self

    def __exit__(self, *_: object) -> None:
        self.cupy.current = self.previous.pop()

    def synchronize(self) -> None:
        assert self.recording is None, "a captured stream cannot be waited for"

    def begin_capture(self, mode: Any = None) -> None:
        assert self.recording is None
        self.recording = []
        self.cupy.capturing += 1

    def end_capture(self) -> Any:
        assert self.recording is not None
        recorded, self.recording = self.recording, None
        self.cupy.capturing -= 1

        def launch(stream: Stream | None = None) -> None:
            for work in recorded:
                work()

        return SimpleNamespace(launch=launch)


class RawKernel:
    def __init__(self, cupy: FakeCupy, kernel: Kernel) -> None:
        self.cupy, self.kernel, self.device = cupy, kernel, cupy.device

    @property
    def max_dynamic_shared_size_bytes(self) -> int | None:
        return self.kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        self.kernel.max_dynamic_shared_size_bytes = nbytes

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        assert self.cupy.entered > 0, "a launch outside of the device"
        assert self.cupy.current is not None, "a launch on the null stream"
        assert all(isinstance(arg, Array | np.generic) for arg in args)
        used = {arg.data.device for arg in args if isinstance(arg, Array)}
        used |= {self.device, self.cupy.current.device, self.cupy.device}
        assert len(used) == 1, f"a launch with parts of several devices: {used}"
        passed = tuple(arg.host if isinstance(arg, Array) else _scalar(arg) for arg in args)

        def work() -> None:
            self.cupy.launches += 1
            if self.cupy.launches_on is not None:
                self.cupy.launches_on.append(self.device)
            self.kernel(grid, block, passed, shared_mem=shared_mem)

        if self.cupy.current.recording is not None:
            self.cupy.current.recording.append(work)
        else:
            work()


def _scalar(value: Any) -> Any:
    """CuPy knows pointers as integers of 64 bits."""
    return int(value) if isinstance(value, np.uint64) else value


class Event:
    """A moment; recorded on the current stream."""

    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy = cupy
        self.time_s: float | None = None

    def record(self) -> None:
        assert self.cupy.current is not None, "an event on the null stream"
        self.time_s = time.perf_counter()

    def synchronize(self) -> None:
        assert self.time_s is not None and not self.cupy.capturing


def elapsed_ms(begin: Event, end: Event) -> float:
    assert begin.time_s is not None and end.time_s is not None
    return (end.time_s - begin.time_s) * 1e3


class FakeCupy(threading.local):
    """The module; attributes set in `__init__` are each thread's own, as in CuPy."""

    __version__ = "14.2.0"

    def __init__(
        self,
        *,
        free_bytes: int = 1 << 40,
        num_devices: int = 1,
        launches_on: list[int] | None = None,
    ) -> None:
        self.capturing, self.launches, self.loaded = 0, 0, 0
        self.devices: list[int] = []
        self.launches_on = launches_on  # one list for all threads
        self.free_bytes = free_bytes
        self.current: Stream | None = None
        fake = self

        class Device:
            compute_capability = "80"
            attributes: dict[str, int] = {  # noqa: RUF012
                "MultiProcessorCount": 108,
                "MaxSharedMemoryPerBlockOptin": 166912,
            }

            def __init__(self, index: int) -> None:
                assert 0 <= index < num_devices
                self.index = index

            def __enter__(self) -> None:
                fake.devices.append(self.index)

            def __exit__(self, *_: object) -> None:
                assert fake.devices.pop() == self.index

            def synchronize(self) -> None:
                assert not fake.capturing

        self.cuda = SimpleNamespace(
            Device=Device,
            Event=lambda: Event(fake),
            get_elapsed_time=elapsed_ms,
            Stream=lambda non_blocking=False: Stream(fake, non_blocking),
            alloc_pinned_memory=lambda nbytes: memoryview(bytearray(nbytes)),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                memcpyHostToDevice=1,
                memcpyDeviceToHost=2,
                getDeviceCount=lambda: num_devices,
                driverGetVersion=lambda: 13000,
                getDeviceProperties=lambda index: {"name": b"Fake A100"},
                memGetInfo=lambda: (fake.free_bytes, 1 << 40),
                memcpyAsync=self._memcpy_async,
            ),
        )
        self.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
        self.get_default_pinned_memory_pool = self.get_default_memory_pool

    @property
    def entered(self) -> int:
        return len(self.devices)

    @property
    def device(self) -> int:
        return self.devices[-1] if self.devices else 0

    def empty(self, nbytes: int, dtype: Any) -> Array:
        assert self.entered and not self.capturing, "an allocation during capture"
        if nbytes > self.free_bytes:
            raise OutOfMemoryError("out of memory")
        return Array((nbytes,), dtype, Pointer(device_array(nbytes, np.uint8), self.device))

    def ndarray(self, shape: Any, dtype: Any, *, memptr: Pointer) -> Array:
        return Array(shape, dtype, memptr)

    def RawModule(self, *, path: str) -> Any:
        assert not self.capturing, "code is loaded during capture"
        self.loaded += 1
        module = Module(Path(path).read_text(), arch="sm_80")
        return SimpleNamespace(get_function=lambda name: RawKernel(self, module.get_function(name)))

    def _memcpy_async(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        assert kind in (1, 2) and not self.capturing
        assert self.current is not None and stream == self.current.ptr
        ctypes.memmove(to, source, nbytes)
