"""CudaOps on the emulator: whole models, and the operations beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert import Engine, model
from minibert.batch import pack
from minibert.compress.sparsify import sparsify_model
from minibert.kernels.cuda.emulated import EmulatedDevice
from minibert.loading import load_model
from minibert.ops.cuda import DTYPES, CudaOps, cuda_ops
from minibert.ops.cuda_weights import quantize_weight
from minibert.ops.reference import ReferenceOps
from minibert.weights.sparsity import SparsityOptions
from tests.conftest import TinyModel
from tests.plain_ops import (
    SHAPE,
    Loaded,
    assert_as_good_as_plain,
    encode,
    load,
    plain_ops,
    quantized_rows,
    random_texts,
    rounded,
)
from tests.texts import texts as corpus


@pytest.fixture(scope="module")
def small(tiny: TinyModel) -> Loaded:
    return load(tiny("bert", **SHAPE))


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_block_sparse_model_runs_on_the_dense_kernels(
    tiny: TinyModel, tmp_path: Path, dtype: str
) -> None:
    options = SparsityOptions("block")
    sparsify_model(tiny("bert", **SHAPE), tmp_path / "sparse", options, texts=corpus())
    batch = pack(random_texts([9, 1, 30]))
    assert_as_good_as_plain(load(tmp_path / "sparse"), batch, dtype, cuda_ops("emulator", dtype))


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
