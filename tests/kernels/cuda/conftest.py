"""The bench on which kernels are tested: the emulator, or a GPU with MINIBERT_TEST_DEVICE=cuda."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert.kernels.cuda.device import CupyDevice, Device
from minibert.kernels.cuda.launch import Launch
from minibert.ops.cuda_stream import STORAGE
from minibert.ops.cuda_weights import to_dtype

Float64 = NDArray[np.float64]


class Bench:
    """Puts arrays on a device, launches, brings results back."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.new_stream()

    @property
    def target(self) -> Any:
        return self.device.target

    def put(self, array: NDArray[Any]) -> Any:
        return self.device.to_device(array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        kind = {"int32": "<i4"}.get(dtype) or STORAGE[dtype]
        nbytes = int(np.prod(shape)) * np.dtype(kind).itemsize
        return self.device.view(self.device.empty(max(nbytes, 1)), 0, shape, kind)

    def get(self, array: Any) -> NDArray[Any]:
        """The array on the host, as stored."""
        host = self.device.empty_pinned(array.nbytes)
        with self.device.use(self.stream):
            self.device.copy_out(host, array, self.stream)
            self.device.synchronize(self.stream)
        return np.array(host.view(array.dtype).reshape(array.shape))

    def launch(self, launch: Launch, *arguments: Any) -> None:
        with self.device.use(self.stream):
            self.device.launch(launch, *arguments)


def stored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Rounded to a dtype, as its bits lie in memory."""
    return to_dtype(np.asarray(array, np.float32), dtype, name="a test array")


def widened(array: NDArray[Any]) -> Float64:
    """Stored values as float64; uint16 is bfloat16."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def rounded(array: NDArray[Any], dtype: str) -> Float64:
    """What is left of values that are stored in a dtype."""
    return widened(stored(array, dtype))


def assert_as_good_as_plain(out: NDArray[Any], plain: NDArray[Any], ref: Float64) -> None:
    """At most twice the error of the plain low-precision version, both against float64.

    The few float32 roundings that a plain version can happen to escape are granted on top.
    """
    tiny = 4 * np.finfo(np.float32).eps * float(np.abs(ref).max(initial=0.0))
    allowed = 2 * float(np.abs(plain - ref).max(initial=0.0)) + tiny
    found = float(np.abs(widened(out) - ref).max(initial=0.0))
    assert found <= allowed, f"error {found:.3g}, allowed {allowed:.3g}"


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench(open_device(os.environ.get("MINIBERT_TEST_DEVICE", "emulator")))


def open_device(name: str) -> Device:
    if name == "cuda":
        return CupyDevice(0)
    from minibert.kernels.cuda.emulated import EmulatedDevice

    kind, _, number = name.partition(":")
    assert kind == "emulator"
    return EmulatedDevice(int(number or 80))


def hard_values(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> NDArray[np.float32]:
    """Normal values, one in fifty twenty times as large."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
    values[rng.random(shape) < 0.02] *= 20
    return values
