"""CupyDevice, on a stand-in for CuPy that runs kernels in the emulator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.workloads import TINY, config_of, random_batch, random_weights
from minibert import model
from minibert.errors import DeviceError, DeviceMemoryError
from minibert.kernels.cuda import device as devices
from minibert.kernels.cuda.emulated import EmulatedDevice
from minibert.kernels.cuda.launch import Launch
from minibert.ops.cuda import CudaOps, cuda_ops
from tests.kernels.cuda.fake_cupy import FakeCupy


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCupy:
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    # The emulator reads PTX, which a GPU gets only where the compiler is older than it.
    monkeypatch.setattr(devices, "choose_code", lambda *_: ("ptx", "sm_80"))
    return cupy


def encode(ops: CudaOps, seqlens: list[int], times: int = 1) -> list[np.ndarray]:
    config = config_of(TINY)
    parameters = model.prepare(ops, random_weights(TINY), config)

    def pooled(stream: Any, uploaded: Any) -> tuple[Any, ...]:
        hidden = model.encode(stream, uploaded, parameters, config)
        return (stream.normalize(stream.pool(hidden, uploaded, "mean")),)

    batch = random_batch(seqlens, TINY.vocab_size)
    with ops.stream(alone=True) as stream:
        return [stream.forward(batch, pooled, key="mean")[0] for _ in range(times)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_gpu_gives_what_the_emulator_gives(fake: FakeCupy, dtype: str) -> None:
    ops = cuda_ops("cuda", dtype)
    assert (ops.name, ops.device.name) == ("cuda", "Fake A100")
    assert ops.device.target == EmulatedDevice(80).target
    expected = encode(cuda_ops("emulator", dtype), [9, 3])[0]
    # Plain launches, capture, replay.
    found = encode(ops, [9, 3], times=3)
    assert all(np.array_equal(rows, expected) for rows in found)
    loaded = fake.loaded
    encode(ops, [9, 3])
    assert fake.loaded == loaded
    assert fake.entered == 0 and fake.current is None
    ops.close()


def test_a_graph_holds_every_launch_of_the_pass(fake: FakeCupy) -> None:
    ops = cuda_ops("cuda", "float16")
    encode(ops, [9], times=1)
    plain = fake.launches
    encode(ops, [9], times=1)
    replayed = cuda_ops("cuda", "float16")
    fake.launches = 0
    encode(replayed, [9], times=3)
    assert fake.launches == 3 * plain
    # Without graphs the batch has no fillers and the bytes are the same.
    without = encode(cuda_ops("cuda", "float16", graphs=False), [9])
    assert np.array_equal(without[0], encode(ops, [9])[0])


def test_a_full_gpu_says_how_much_it_lacks(fake: FakeCupy) -> None:
    ops = cuda_ops("cuda", "float16")
    fake.free_bytes = 100
    with pytest.raises(DeviceMemoryError, match=r"Fake A100 must have \d+ bytes free, it has 100"):
        encode(ops, [9])


def test_kernels_with_much_shared_memory_opt_in(fake: FakeCupy) -> None:
    device = devices.CupyDevice(0)
    stream = device.new_stream()
    launch = Launch("normalize.cu", "normalize_kernel<float>", (1, 1, 1), 128, 60 * 1024)
    out, rows = (
        device.to_device(np.zeros((1, 8), np.float32)),
        device.to_device(np.ones((1, 8), np.float32)),
    )
    with device.use(stream):
        device.launch(launch, out, rows, 1, 8, 8, 8)
    assert np.allclose(out.host, 8**-0.5)


def test_a_failed_capture_leaves_the_stream_usable(fake: FakeCupy) -> None:
    device = devices.CupyDevice(0)
    stream = device.new_stream()

    def broken() -> None:
        raise ValueError("no")

    with device.use(stream), pytest.raises(ValueError, match="no"):
        device.capture(stream, broken)
    device.synchronize(stream)
    assert fake.capturing == 0


def test_another_gpu_than_there_is_is_refused(fake: FakeCupy) -> None:
    with pytest.raises(DeviceError, match="got cuda:1"):
        cuda_ops("cuda:1")
