"""What plain arithmetic of a dtype gives: the measure for the CUDA kernels on whole models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert import model
from minibert.batch import Batch
from minibert.config import EncoderConfig
from minibert.ops.cuda_weights import quantize_weight, to_dtype
from minibert.ops.reference import ReferenceOps
from minibert.weights.checkpoint import EncoderWeights, load_encoder

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

    def prepare_linear(
        self,
        weight: NDArray[Any],
        bias: Any,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
    ) -> Any:
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
