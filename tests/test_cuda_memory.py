"""CudaOps on the emulator: graphs, scratch memory, a full device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert import model
from minibert.batch import pack
from minibert.errors import (
    DeviceMemoryError,
    InputError,
)
from minibert.kernels.cuda.emulated import EmulatedDevice
from minibert.ops.cuda import CudaOps, DeviceArray, cuda_ops
from minibert.ops.interface import ForwardShape
from tests.conftest import TinyModel
from tests.plain_ops import (
    SHAPE,
    Loaded,
    encode,
    load,
    random_texts,
)


@pytest.fixture(scope="module")
def small(tiny: TinyModel) -> Loaded:
    return load(tiny("bert", **SHAPE))


class Counting(EmulatedDevice):
    """Counts allocations, launches and captures; refuses allocations beyond a limit."""

    def __init__(self, limit: int = 1 << 40) -> None:
        super().__init__(80, checks=False)
        self.limit, self.allocations, self.launches, self.captures = limit, 0, 0, 0

    def empty(self, nbytes: int) -> Any:
        self.allocations += 1
        if nbytes > self.limit:
            raise DeviceMemoryError(f"the emulator must have {nbytes} bytes free")
        return super().empty(nbytes)

    def launch(self, launch: Any, *arguments: Any) -> None:
        self.launches += 1
        super().launch(launch, *arguments)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        self.captures += 1
        return super().capture(stream, work)


def graph_ops(device: EmulatedDevice) -> CudaOps:
    return CudaOps(device, name="emulator", dtype="float16", num_streams=1)


def test_graphs_give_the_bytes_of_plain_launches(small: Loaded) -> None:
    weights, config = small
    device = Counting()
    ops = graph_ops(device)
    parameters = model.prepare(ops, weights, config)

    def function(stream: Any, uploaded: Any) -> tuple[Any, ...]:
        hidden = model.encode(stream, uploaded, parameters, config)
        return hidden, stream.normalize(stream.pool(hidden, uploaded, "mean"))

    # Of one bucket: 17 to 32 tokens, one to three texts.
    batches = [pack(random_texts(seqlens)) for seqlens in ([20], [9, 10], [30], [25], [8, 8, 9])]
    captures = []
    for batch in batches:
        expected = encode(ops, small, batch)
        with ops.stream(alone=True) as stream:
            found = stream.forward(batch, function, key="mean")
        captures.append(device.captures)
        for f, e in zip(found, expected, strict=True):
            assert np.array_equal(f, e)
    # The first batch of a bucket runs, the second is captured, later ones are replayed.
    assert device.captures >= 1
    with ops.stream(alone=True) as stream:
        stream.forward(batches[0], function, key="mean")
        before = (device.allocations, device.captures, device.launches)
        stream.forward(batches[2], function, key="mean")
        assert (device.allocations, device.captures) == before[:2]
        with pytest.raises(InputError, match="input_ids must be from 0 to 74, got 9999 at token 0"):
            stream.forward(pack([np.full(20, 9999, np.int32)]), function, key="mean")


def test_graphs_are_dropped_when_their_memory_moves(small: Loaded) -> None:
    weights, config = small
    device = Counting()
    ops = graph_ops(device)
    parameters = model.prepare(ops, weights, config)

    def function(stream: Any, uploaded: Any) -> tuple[Any, ...]:
        return (model.encode(stream, uploaded, parameters, config),)

    def forward(num_tokens: int) -> NDArray[Any]:
        with ops.stream(alone=True) as stream:
            return stream.forward(pack(random_texts([num_tokens])), function, key="states")[0]

    first = [forward(16) for _ in range(3)]
    captures = device.captures
    assert captures == 1
    forward(64)
    again = [forward(16) for _ in range(3)]
    assert device.captures > captures
    assert all(np.array_equal(states, first[0]) for states in (*first, *again))


def test_the_second_pass_of_a_size_allocates_nothing(small: Loaded) -> None:
    weights, config = small
    device = Counting()
    ops = graph_ops(device)
    parameters = model.prepare(ops, weights, config)
    with ops.stream(alone=True) as stream:
        counts = []
        for _ in range(4):
            uploaded = stream.upload(pack(random_texts([20])))
            stream.download(model.encode(stream, uploaded, parameters, config))
            counts.append(device.allocations)
    assert counts[3] == counts[2] == counts[1]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_scratch_bytes_bound_what_a_pass_takes(small: Loaded, dtype: str) -> None:
    weights, config = small
    ops = CudaOps(Counting(), name="emulator", dtype=dtype, num_streams=1)
    parameters = model.prepare(ops, weights, config)
    batch = pack(random_texts([30, 2]))
    bound = ops.scratch_bytes(
        model.forward_shape(config, parameters, num_tokens=32, max_seqlen=30, num_seqs=2)
    )
    with ops.stream(alone=True) as stream:
        for _ in range(2):
            uploaded = stream.upload(batch)
            hidden = model.encode(stream, uploaded, parameters, config)
            stream.download(stream.normalize(stream.pool(hidden, uploaded, "mean")))
        assert stream._state is not None
        taken = stream._state.arena.slab_bytes
    assert 0 < taken <= bound
    assert bound <= 2 * taken + 65536


def test_a_full_device_says_so_and_stays_usable(small: Loaded) -> None:
    weights, config = small
    device = Counting()
    ops = graph_ops(device)
    parameters = model.prepare(ops, weights, config)
    device.limit = 20_000
    with ops.stream(alone=True) as stream:
        with pytest.raises(DeviceMemoryError, match="bytes free"):
            model.encode(stream, stream.upload(pack(random_texts([60] * 3))), parameters, config)
        uploaded = stream.upload(pack(random_texts([20])))
        found = stream.download(model.encode(stream, uploaded, parameters, config))
    assert np.isfinite(found).all()


def test_memory_is_free_again_while_the_error_is_handled(small: Loaded) -> None:
    weights, config = small
    device = Counting()
    ops = graph_ops(device)
    parameters = model.prepare(ops, weights, config)

    def function(stream: Any, uploaded: Any) -> tuple[Any, ...]:
        return (model.encode(stream, uploaded, parameters, config),)

    def living() -> int:
        gc.collect()
        return sum(type(thing) is DeviceArray for thing in gc.get_objects())

    before = living()
    device.limit = 20_000
    with ops.stream(alone=True) as stream:
        try:
            stream.forward(pack(random_texts([60] * 3)), function, key="states")
        except DeviceMemoryError:
            assert living() == before
            (half,) = stream.forward(pack(random_texts([20])), function, key="states")
        assert half.shape == (20, 64)


def test_scratch_grows_with_each_size() -> None:
    ops = cuda_ops("emulator", "float16")
    base = dict(
        num_tokens=100,
        max_seqlen=50,
        num_seqs=4,
        hidden_size=384,
        qkv_size=1152,
        intermediate_size=1536,
        num_heads=12,
        head_dim=32,
    )
    least = ops.scratch_bytes(ForwardShape(**base))
    for name in ("num_tokens", "hidden_size", "qkv_size", "intermediate_size"):
        assert ops.scratch_bytes(ForwardShape(**{**base, name: 2 * base[name]})) > least, name
