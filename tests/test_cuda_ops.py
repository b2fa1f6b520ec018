"""CudaOps on the emulator: whole models, batches, graphs, memory, refusals."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert import Engine, model
from minibert.batch import Batch, pack
from minibert.config import EncoderConfig
from minibert.errors import (
    DeviceError,
    DeviceMemoryError,
    EngineClosedError,
    InputError,
    MissingDependencyError,
)
from minibert.kernels.cuda.emulated import EmulatedDevice
from minibert.loading import load_model
from minibert.ops.cuda import DTYPES, CudaOps, DeviceArray, cuda_ops
from minibert.ops.cuda_weights import quantize_weight, to_dtype
from minibert.ops.interface import ForwardShape
from minibert.ops.reference import ReferenceOps
from minibert.weights.checkpoint import EncoderWeights, load_encoder
from tests.conftest import TinyModel

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 100,
}


def rounded(array: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    stored = to_dtype(array, dtype, name="a test array")
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def quantized_rows(x: NDArray[Any]) -> NDArray[np.float64]:
    """Each row to 256 steps of its own range, which holds 0, and back."""
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.where(high > low, (high - low) / 255, 1).astype(np.float64)
    zero_point = np.rint(-low / scale)
    back: NDArray[np.float64] = (
        np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point
    ) * scale
    return back


class PlainOps(ReferenceOps):
    """What a plain version of a dtype does: float64 inside, every stored array rounded."""

    def __init__(self, dtype: str) -> None:
        super().__init__("float64")
        self.plain = dtype
        self.storage = "float16" if dtype == "int8" else dtype

    def store(self, array: NDArray[Any]) -> NDArray[Any]:
        return rounded(array, self.storage)

    def prepare_embedding(self, weight: NDArray[Any]) -> NDArray[Any]:
        return self.store(weight)

    def prepare_linear(self, weight: NDArray[Any], bias: Any, *, name: str) -> Any:
        self_quantized = self.plain == "int8" and name.startswith("layer.")
        if self_quantized:
            weight_q, scale = quantize_weight(weight)
            return super().prepare_linear(
                weight_q.astype(np.float64) * scale.astype(np.float64)[:, None], bias, name=name
            ), True
        return super().prepare_linear(self.store(weight), bias, name=name), False

    def embed(self, *args: Any) -> NDArray[Any]:
        return self.store(super().embed(*args))

    def linear(self, hidden: NDArray[Any], weights: Any, **options: Any) -> NDArray[Any]:
        linear, quantized = weights
        if quantized:
            hidden = quantized_rows(hidden)
        return self.store(super().linear(hidden, linear, **options))

    def layer_norm(self, hidden: NDArray[Any], norm: Any) -> NDArray[Any]:
        return self.store(super().layer_norm(hidden, norm))

    def attention(self, qkv: NDArray[Any], batch: Batch, **options: Any) -> NDArray[Any]:
        return self.store(super().attention(qkv, batch, **options))


def plain_ops(dtype: str) -> ReferenceOps:
    """The plain version of a dtype; of float32 it is NumPy's."""
    return ReferenceOps("float32") if dtype == "float32" else PlainOps(dtype)


Loaded = tuple[EncoderWeights, EncoderConfig]


def load(folder: Path) -> Loaded:
    config = EncoderConfig.from_file(folder / "config.json")
    return load_encoder(folder, config), config


@pytest.fixture(scope="module")
def small(tiny: TinyModel) -> Loaded:
    return load(tiny("bert", **SHAPE))


def random_texts(seqlens: Sequence[int], vocab_size: int = 60) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(len(seqlens))
    return [rng.integers(1, vocab_size, n).astype(np.int32) for n in seqlens]


def encode(ops: Any, loaded: Loaded, batch: Batch) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hidden states of all tokens, and normalised means."""
    weights, config = loaded
    parameters = model.prepare(ops, weights, config)
    with ops.stream(alone=True) as stream:
        uploaded = stream.upload(batch)
        hidden = model.encode(stream, uploaded, parameters, config)
        pooled = stream.normalize(stream.pool(hidden, uploaded, "mean"))
        return stream.download(hidden), stream.download(pooled)


def assert_as_good_as_plain(loaded: Loaded, batch: Batch, dtype: str, ops: Any) -> None:
    exact = encode(ReferenceOps("float64"), loaded, batch)
    plain = encode(plain_ops(dtype), loaded, batch)
    found = encode(ops, loaded, batch)
    for f, p, e in zip(found, plain, exact, strict=True):
        assert f.shape == e.shape and f.dtype == np.float32
        allowed = 2 * np.abs(p - e).max() + 4 * np.finfo(np.float32).eps * np.abs(e).max()
        assert np.abs(f - e).max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_as_near_to_float64_as_plain_arithmetic(small: Loaded, dtype: str) -> None:
    batch = pack(random_texts([9, 1, 30]))
    assert_as_good_as_plain(small, batch, dtype, cuda_ops("emulator", dtype))


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_architectures_compute_the_same_model(
    small: Loaded, dtype: str, capability: int
) -> None:
    batch = pack(random_texts([7, 12]))
    assert_as_good_as_plain(small, batch, dtype, cuda_ops(f"emulator:{capability}", dtype))


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_other_families_run(tiny: TinyModel, family: str) -> None:
    shape: dict[str, Any] = dict(SHAPE)
    if family == "distilbert":
        shape = {"dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": 100}
    loaded = load(tiny(family, **shape))
    batch = pack(random_texts([5, 11]), first_position=loaded[1].first_position)
    assert_as_good_as_plain(loaded, batch, "float16", cuda_ops("emulator", "float16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_has_the_same_bytes_alone_and_in_every_order(small: Loaded, dtype: str) -> None:
    texts = random_texts([3, 40, 17, 1])
    ops = cuda_ops("emulator", dtype)
    together = encode(ops, small, pack(texts))
    order = [2, 0, 3, 1]
    permuted = encode(ops, small, pack([texts[i] for i in order]))
    assert np.array_equal(permuted[1], together[1][order])
    alone = encode(ops, small, pack([texts[2]]))
    assert np.array_equal(alone[1][0], together[1][2])
    assert np.array_equal(alone[0], together[0][43:60])


def test_float_layers_are_not_quantized(small: Loaded) -> None:
    linears = ("qkv", "attention_output", "intermediate", "output")
    every = [f"layer.{i}.{name}" for i in range(2) for name in linears]
    batch = pack(random_texts([6]))
    kept = CudaOps(
        EmulatedDevice(80), name="emulator", dtype="int8", float_layers=every, reuse_memory=False
    )
    expected = encode(cuda_ops("emulator", "float16"), small, batch)
    for found, float16 in zip(encode(kept, small, batch), expected, strict=True):
        assert np.array_equal(found, float16)
    parameters = model.prepare(cuda_ops("emulator", "int8", float_layers=every[:1]), *small)
    assert parameters.layers[0].qkv.weight_scale is None
    assert parameters.layers[1].qkv.weight_scale is not None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_single_layers_may_be_int8_in_any_dtype(dtype: str) -> None:
    rng = np.random.default_rng(0)
    table, weight = (rng.standard_normal(size).astype(np.float32) for size in ((60, 64), (24, 64)))
    ops = cuda_ops("emulator", dtype)
    word = ops.prepare_embedding(table)
    linear = ops.prepare_linear(weight, None, name="layer.0.qkv", dtype="int8")
    texts = random_texts([5])
    with ops.stream(alone=True) as stream:
        hidden = stream.embed(stream.upload(pack(texts)), (word, None, None), None)
        found = stream.download(stream.linear(hidden, linear))
    x = rounded(table, dtype)[texts[0]]
    weight_q, weight_scale = quantize_weight(weight)
    ref = quantized_rows(x) @ (weight_q * weight_scale[:, None].astype(np.float64)).T
    allowed = 2 * np.abs(rounded(ref, dtype) - ref).max() + 1e-6 * np.abs(ref).max()
    assert np.abs(found - ref).max() <= allowed


def test_the_narrow_kernel_is_opt_in(small: Loaded) -> None:
    batch = pack(random_texts([5]))
    launched: list[str] = []

    class Watching(EmulatedDevice):
        def launch(self, launch: Any, *arguments: Any) -> None:
            launched.append(launch.source)
            super().launch(launch, *arguments)

    def sources(batch_invariant: bool, dtype: str) -> set[str]:
        launched.clear()
        ops = CudaOps(
            Watching(80),
            name="emulator",
            dtype=dtype,
            batch_invariant=batch_invariant,
            reuse_memory=False,
        )
        assert_as_good_as_plain(small, batch, dtype, ops)
        return set(launched)

    assert "gemm_narrow.cu" not in sources(True, "float16")
    assert "gemm_narrow.cu" in sources(False, "float16")
    # Integer sums are exact: there the narrow kernel is taken always.
    assert "gemm_narrow.cu" in sources(True, "int8")


# ---- the operations that a plain encoder does not use ------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_run_on_pooled_vectors(dtype: str) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((60, 64)).astype(np.float32)
    dense = rng.standard_normal((13, 64)).astype(np.float32) / 8
    last = rng.standard_normal((3, 26)).astype(np.float32) / 5
    bias = rng.standard_normal(13).astype(np.float32)
    batch = pack(random_texts([4, 9, 2]), skip=[1, 0, 0])

    def heads(ops: Any) -> tuple[NDArray[Any], ...]:
        word = ops.prepare_embedding(table)
        first = ops.prepare_linear(dense, bias, name="pooler")
        second = ops.prepare_linear(last, None, name="classifier")
        with ops.stream(alone=True) as stream:
            uploaded = stream.upload(batch)
            hidden = stream.embed(uploaded, (word, None, None), None)
            pooled = stream.pool(hidden, uploaded, "cls")
            tanh = stream.linear(pooled, first, activation="tanh")
            both = stream.concatenate([tanh, tanh])
            logits = stream.linear(both, second)
            unit = stream.normalize(logits)
            return tuple(stream.download(array) for array in (pooled, tanh, both, logits, unit))

    exact = heads(ReferenceOps("float64"))
    plain = heads(plain_ops(dtype))
    for f, p, e in zip(heads(cuda_ops("emulator", dtype)), plain, exact, strict=True):
        allowed = 2 * np.abs(p - e).max() + 8 * np.finfo(np.float32).eps * np.abs(e).max()
        assert f.shape == e.shape
        assert np.abs(f - e).max() <= allowed


def test_an_empty_batch_gives_empty_arrays(small: Loaded) -> None:
    hidden, pooled = encode(cuda_ops("emulator", "float16"), small, pack([]))
    assert hidden.shape == (0, 64) and pooled.shape == (0, 64)
    ops = cuda_ops("emulator", "float16")
    word = ops.prepare_embedding(np.ones((4, 16), np.float32))
    with ops.stream(alone=True) as stream:
        rows = stream.embed(stream.upload(pack([])), (word, None, None), None)
        assert stream.download(stream.concatenate([rows, rows])).shape == (0, 32)


# ---- graphs and memory -------------------------------------------------------------------------
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
    batches = [pack(random_texts(lengths)) for lengths in ([20], [9, 10], [30], [25], [8, 8, 9])]
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
        with pytest.raises(InputError, match="input_ids must be below"):
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


# ---- refusals ----------------------------------------------------------------------------------
def test_devices_and_dtypes_are_refused_by_name() -> None:
    with pytest.raises(DeviceError, match="device must be cuda, cuda:<number>"):
        cuda_ops("gpu")
    with pytest.raises(DeviceError, match="dtype must be one of float32, float16"):
        cuda_ops("emulator", "float64")
    with pytest.raises(DeviceError, match=r"at least 7.5, got 7.0"):
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


# ---- the engine --------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_an_engine_gives_a_text_the_same_bytes_in_every_call(tiny: TinyModel, dtype: str) -> None:
    texts = ["the cat sat on the mat", "a", "bread stays soft in a paper bag and the dog sat"]
    with Engine.from_pretrained(tiny("bert", **SHAPE), device="emulator", dtype=dtype) as engine:
        together = engine.encode(texts)
        assert np.array_equal(engine.encode(texts[::-1]), together[::-1])
        assert np.array_equal(engine.encode(texts[0]), together[0])
        states = engine.encode(texts, output_value="token_embeddings")
    assert [len(rows) for rows in states] == [8, 3, 13]


# ---- the real model ----------------------------------------------------------------------------
SENTENCES = [
    "The cat sat on the mat.",
    "How long does bread stay soft in a paper bag, and does it freeze well?",
    "Ice.",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_minilm_encodes_sentences_as_well_as_plain_arithmetic(minilm: Path, dtype: str) -> None:
    loaded = load_model(minilm)
    tokens = loaded.tokenizer.encode(SENTENCES, max_length=64, truncation_side="right")
    batch = pack(tokens.input_ids)
    parts = (loaded.weights, loaded.config)
    assert_as_good_as_plain(parts, batch, dtype, cuda_ops("emulator", dtype))
