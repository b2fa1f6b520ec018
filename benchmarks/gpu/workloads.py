"""Models and batches that are measured: the usual shapes, with random weights and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch, pack
from minibert.config import EncoderConfig
from minibert.weights.checkpoint import (
    EncoderWeights,
    LayerWeights,
    LinearWeights,
    NormWeights,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One model's shape."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int = 30522

    @property
    def flops_per_token(self) -> int:
        """Operations of the linear layers for one token, multiply and add counted as two."""
        d, f = self.hidden_size, self.intermediate_size
        return self.num_layers * (8 * d * d + 4 * d * f)

    def flops(self, seqlens: Sequence[int]) -> int:
        """Operations of one forward pass, attention included."""
        pairs = sum(n * n for n in seqlens)
        return self.flops_per_token * sum(seqlens) + 4 * self.num_layers * self.hidden_size * pairs

    def weight_bytes(self, element_bytes: int) -> int:
        """Bytes of the encoder's matrices, which a pass must read at least once."""
        return self.flops_per_token // 2 * element_bytes


MINILM = Shape("MiniLM-L6", 384, 6, 12, 1536)
BASE = Shape("BERT-base", 768, 12, 12, 3072)
LARGE = Shape("BERT-large", 1024, 24, 16, 4096)
TINY = Shape("tiny", 64, 1, 2, 128, vocab_size=100)


def config_of(shape: Shape) -> EncoderConfig:
    """The configuration of a BERT of this shape."""
    return EncoderConfig(
        model_type="bert",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        pad_token_id=0,
        embedding_size=shape.hidden_size,
    )


def random_weights(shape: Shape, seed: int = 0) -> EncoderWeights:
    """Weights with the spread of a trained model's."""
    rng = np.random.default_rng(seed)

    def values(*size: int) -> NDArray[np.float32]:
        return rng.standard_normal(size, np.float32) * np.float32(0.04)

    def linear(out_features: int, in_features: int) -> LinearWeights:
        return LinearWeights(values(out_features, in_features), values(out_features))

    d, f = shape.hidden_size, shape.intermediate_size

    def norm() -> NormWeights:
        return NormWeights(1 + values(d), values(d))

    layers = tuple(
        LayerWeights(
            num_heads=shape.num_heads,
            qkv=linear(3 * d, d),
            attention_output=linear(d, d),
            attention_norm=norm(),
            intermediate=linear(f, d),
            output=linear(d, f),
            output_norm=norm(),
        )
        for _ in range(shape.num_layers)
    )
    return EncoderWeights(
        word=values(shape.vocab_size, d),
        position=values(512, d),
        token_type=values(2, d),
        embedding_norm=norm(),
        projection=None,
        layers=layers,
        unused=(),
        dtypes=("float32",),
        files=(),
    )


def random_batch(seqlens: Sequence[int], vocab_size: int, seed: int = 0) -> Batch:
    """Random tokens."""
    rng = np.random.default_rng(seed)
    return pack([rng.integers(1, vocab_size, n).astype(np.int32) for n in seqlens])


def ragged(count: int, mean: float, most: int, seed: int = 0) -> list[int]:
    """Lengths as texts have them: log-normal with a spread of three quarters of the mean."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.log(1 + 0.75**2))
    seqlens = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return sorted(np.clip(np.rint(seqlens), 3, most).astype(int).tolist(), reverse=True)
