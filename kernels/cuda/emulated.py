"""A device without a GPU: the PTX of the kernels runs in the emulator, memory is NumPy's.

Every launch is complete when it returns, so streams and waits have nothing to do. A captured graph
is the list of its launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.kernels.cuda.device import Argument, Graph, scalar
from minibert.kernels.cuda.launch import Launch, target_for
from minibert.kernels.cuda.loader import load_code
from minibert.kernels.emulator import LaunchCounters, Module, device_array

__all__ = ["EmulatedDevice"]

_NUM_SMS = 108  # decides tile shapes as on a common card


class EmulatedDevice:
    """Runs kernels in the emulator.

    Attributes:
        counted: launches and their counters, in order, when made with `counters=True`.
    """

    def __init__(
        self, compute_capability: int = 80, *, checks: bool = True, counters: bool = False
    ) -> None:
        """Emulate one architecture.

        Args:
            compute_capability: 75, 80, 86, ...
            checks: find races and uninitialised reads; bounds are always checked.
            counters: keep counters of every launch.

        Raises:
            DeviceError: an architecture that the kernels do not support.
        """
        self.target = target_for(compute_capability, _NUM_SMS)
        self.name = f"emulator of {self.target.arch}"
        self.counted: list[tuple[Launch, LaunchCounters]] = []
        self._checks, self._counters = checks, counters
        self._kernels: dict[tuple[str, str], Any] = {}
        self._recording: list[tuple[Launch, tuple[Argument, ...]]] | None = None

    def empty(self, nbytes: int) -> Any:
        """See `Device.empty`; reads of what was never written are found."""
        return device_array(nbytes, np.uint8)

    def view(self, memory: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
        """See `Device.view`; its bounds are the bounds that accesses are checked against."""
        count = int(np.prod(shape, dtype=np.int64))
        flat = memory.reshape(-1).view(np.uint8)
        return flat[offset : offset + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def to_device(self, array: NDArray[Any]) -> Any:
        """See `Device.to_device`."""
        return np.array(array, order="C")

    def empty_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See `Device.empty_pinned`."""
        return np.empty(nbytes, np.uint8)

    def new_stream(self) -> None:
        """See `Device.new_stream`."""

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        """See `Device.use`."""
        yield

    def copy_in(self, to: Any, source: NDArray[np.uint8], stream: Any) -> None:
        """See `Device.copy_in`."""
        to.reshape(-1).view(np.uint8)[: source.size] = source

    def copy_out(self, to: NDArray[np.uint8], source: Any, stream: Any) -> None:
        """See `Device.copy_out`."""
        to[:] = source.reshape(-1).view(np.uint8)[: to.size]

    def synchronize(self, stream: Any) -> None:
        """See `Device.synchronize`."""

    def launch(self, launch: Launch, *arguments: Argument) -> None:
        """See `Device.launch`."""
        if self._recording is not None:
            self._recording.append((launch, arguments))
            return
        kernel = self._kernels.get((launch.source, launch.kernel))
        if kernel is None:
            kernel = self._kernels[launch.source, launch.kernel] = self._load(launch)
        counters = kernel(
            launch.grid_size,
            (launch.block_size, 1, 1),
            tuple(map(scalar, arguments)),
            shared_mem=launch.smem_bytes,
        )
        if counters is not None:
            self.counted.append((launch, counters))

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """See `Device.capture`."""
        self._recording = []
        try:
            work()
            return _Recording(self, self._recording)
        finally:
            self._recording = None

    def close(self) -> None:
        """See `Device.close`."""
        self._kernels.clear()

    def _load(self, launch: Launch) -> Any:
        code = load_code(launch.source, launch.kernel, arch=self.target.arch, product="ptx")
        module = Module(
            code.image.decode(),
            arch=self.target.arch,
            checks=self._checks,
            counters=self._counters,
        )
        kernel = module.get_function(code.symbol)
        if launch.smem_bytes > 48 * 1024:
            kernel.max_dynamic_shared_size_bytes = launch.smem_bytes
        return kernel


class _Recording:
    """The launches of a captured pass."""

    def __init__(
        self, device: EmulatedDevice, launches: list[tuple[Launch, tuple[Argument, ...]]]
    ) -> None:
        self._device, self._launches = device, launches

    def launch(self, stream: Any) -> None:
        """Run them in order."""
        for launch, arguments in self._launches:
            self._device.launch(launch, *arguments)
