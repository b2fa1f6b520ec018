"""What the CUDA ops cannot do is refused, and what is missing is named."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.errors import (
    DeviceError,
    DeviceOptionError,
    EngineClosedError,
    InputError,
    MissingDependencyError,
)
from minibert.ops.cuda import cuda_ops
from tests.plain_ops import (
    random_texts,
)


def test_devices_and_dtypes_are_refused_by_name() -> None:
    with pytest.raises(DeviceError, match="device must be cuda, cuda:<number>"):
        cuda_ops("gpu")
    with pytest.raises(DeviceError, match="dtype must be one of float32, float16"):
        cuda_ops("emulator", "float64")
    with pytest.raises(DeviceOptionError, match="must be emulator:75 or later, got 'emulator:70'"):
        cuda_ops("emulator:70")
    with pytest.raises(DeviceError, match=r"bfloat16 needs compute capability 8.0"):
        cuda_ops("emulator:75", "bfloat16")


def test_cuda_without_cupy_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingDependencyError, match=r"needs CuPy.*pip install"):
        cuda_ops("cuda")


class FakeRuntimeError(Exception):
    pass


def fake_cupy(count: int | None) -> Any:
    """As much of CuPy as opening a device asks first; None stands for a missing driver."""

    class Runtime:
        CUDARuntimeError = FakeRuntimeError

        @staticmethod
        def getDeviceCount() -> int:
            if count is None:
                raise FakeRuntimeError("cudaErrorInsufficientDriver")
            return count

    class Cuda:
        runtime = Runtime

    class Cupy:
        cuda = Cuda

    return Cupy()


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (None, "cuda", r"needs an NVIDIA driver.*cudaErrorInsufficientDriver"),
        (0, "cuda", "needs a GPU: the driver works and shows none"),
        (2, "cuda:2", r"device must be cuda:0 to cuda:1 on this machine, got cuda:2"),
    ],
)
def test_an_unusable_gpu_is_explained(
    monkeypatch: pytest.MonkeyPatch, count: int | None, device: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(count))
    with pytest.raises(DeviceError, match=message):
        cuda_ops(device)


def test_weights_beyond_float16_are_refused() -> None:
    weight = np.full((8, 8), 1e6, np.float32)
    with pytest.raises(DeviceError, match="classifier must fit float16, its largest value"):
        cuda_ops("emulator", "float16").prepare_linear(weight, None, name="classifier")


def test_operations_stand_inside_a_stream() -> None:
    ops = cuda_ops("emulator", "float16")
    with pytest.raises(DeviceError, match="must stand inside"):
        ops.upload(pack(random_texts([3])))
    ops.close()
    with pytest.raises(EngineClosedError), ops.stream(alone=True):
        pass


def test_shapes_that_do_not_fit_are_refused() -> None:
    ops = cuda_ops("emulator", "float16")
    word = ops.prepare_embedding(np.ones((60, 64), np.float32))
    linear = ops.prepare_linear(np.ones((8, 32), np.float32), None, name="x")
    with ops.stream(alone=True) as stream:
        uploaded = stream.upload(pack(random_texts([3])))
        hidden = stream.embed(uploaded, (word, None, None), None)
        with pytest.raises(InputError, match="hidden must have in_features = 32 columns, got 64"):
            stream.linear(hidden, linear)
        with pytest.raises(InputError, match="qkv must have 3"):
            stream.attention(hidden, uploaded, num_heads=1, head_dim=32, softmax_scale=1.0)
        narrow = stream.concatenate([hidden])
        narrow.num_columns = 24
        with pytest.raises(InputError, match="softmax_scale must be positive"):
            stream.attention(narrow, uploaded, num_heads=1, head_dim=8, softmax_scale=0.0)
    with pytest.raises(DeviceError, match="hidden_size must be a multiple of 8"):
        ops.prepare_embedding(np.ones((4, 12), np.float32))
