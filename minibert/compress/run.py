"""Runs changed weights of a model over a fixed set of texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert import model
from minibert.budget import make_budget
from minibert.config import EncoderConfig
from minibert.loading import LoadedModel
from minibert.ops.interface import Ops
from minibert.ops.recording import LinearEvent, Observer, RecordingOps
from minibert.ops.select import DeviceOptions, make_ops
from minibert.pooling import Step, output_dimension, prepare_steps
from minibert.runner import DeviceModel, Runner
from minibert.weights.checkpoint import EncoderWeights, LayerWeights

_OBSERVED_TOKENS = 256  # small batches, so that some can train and others check
WrapOps = Callable[[Ops], Ops]


class TextRun:
    """A model and texts, tokenized once; every run sees the same batches in the same order.

    Runs with an observer use one stream, so two runs with different weights show their observers
    the same tokens in the same rows.
    """

    def __init__(self, loaded: LoadedModel, texts: Sequence[str], *, device: str = "auto") -> None:
        """Tokenize; texts that are too long are cut.

        Args:
            loaded: the model.
            texts: to run it on.
            device: as `Engine.from_pretrained`.
        """
        self.loaded = loaded
        self.device = device
        self.tokenized = loaded.tokenizer.encode(list(texts), max_length=loaded.max_length)
        self.num_texts = len(texts)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(ids.size for ids in self.tokenized.input_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(ids.size for ids in self.tokenized.input_ids)

    def embeddings(
        self,
        weights: EncoderWeights | None = None,
        *,
        dtype: str | None = "float32",
        observer: Observer | None = None,
        names: Callable[[str], bool] | None = None,
        wrap: WrapOps | None = None,
        steps: Sequence[Step] | None = None,
    ) -> NDArray[np.float32]:
        """Embed all texts.

        Args:
            weights: run instead of the loaded ones; layers may have other shapes.
            dtype: as `Engine.from_pretrained`.
            observer: sees the linear layers named by `names` (all when None).
            names: see `RecordingOps`.
            wrap: puts an Ops of its own around the device's.
            steps: what follows the encoder, in the place of the model's own.

        Returns:
            (num_texts, dimension).
        """
        with PreparedRun(
            self, weights, dtype=dtype, observer=observer, names=names, wrap=wrap, steps=steps
        ) as prepared:
            return prepared.embeddings()


class PreparedRun:
    """Weights laid out on the device, to be run once or to be timed."""

    def __init__(
        self,
        texts: TextRun,
        weights: EncoderWeights | None = None,
        *,
        dtype: str | None = "float32",
        observer: Observer | None = None,
        names: Callable[[str], bool] | None = None,
        wrap: WrapOps | None = None,
        steps: Sequence[Step] | None = None,
    ) -> None:
        """See `TextRun.embeddings`."""
        loaded = texts.loaded
        self.texts = texts
        self.weights = loaded.weights if weights is None else weights
        self.config = replace(
            loaded.config,
            num_hidden_layers=len(self.weights.layers),
            layer_shapes=(),
            pruned_heads={},
        )
        options = DeviceOptions(dtype=dtype)
        ops, _ = make_ops(texts.device, options, quantized=self.weights.quantized)
        if wrap is not None:
            ops = wrap(ops)
        if observer is not None:
            ops = RecordingOps(ops, narrowed(self.config, ops, observer), names=names)
        parameters = model.prepare(ops, self.weights, self.config)
        budget = make_budget(
            lambda *_: 0,
            max_batch_tokens=ops.preferred_batch_tokens if observer is None else _OBSERVED_TOKENS,
            max_length=loaded.max_length,
            num_streams=ops.num_streams,
            memory_limit=None,
        )
        steps = loaded.steps if steps is None else steps
        self._runner = Runner(
            [DeviceModel(ops, parameters, prepare_steps(ops, steps))], self.config, budget
        )
        self._dimension = output_dimension(steps, self.config.hidden_size)

    def embeddings(self) -> NDArray[np.float32]:
        """Embed all texts, (num_texts, dimension)."""
        rows = np.zeros((self.texts.num_texts, self._dimension), np.float32)

        def keep(indices: Any, batch_rows: Any, states: Any, cu_seqlens: Any) -> None:
            rows[indices] = batch_rows

        self._runner.run(self.texts.tokenized, keep)
        return rows

    def seconds(self) -> float:
        """How long one pass over the texts takes."""
        begin = time.perf_counter()
        self._runner.run(self.texts.tokenized, lambda *_: None)
        return time.perf_counter() - begin

    def __enter__(self) -> PreparedRun:
        """The run itself; the device is given back when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give back the device."""
        self._runner.close()


def narrow(values: NDArray[Any], wide: int, config: EncoderConfig) -> NDArray[Any]:
    """Rows of heads without the zeros that they are filled up with: see `model.widen_heads`.

    Args:
        values: (num_tokens, heads * wide).
        wide: width of a head as it is laid out.
        config: has the heads' own width.
    """
    if wide == config.head_dim:
        return values
    heads = values.reshape(len(values), -1, wide)[:, :, : config.head_dim]
    return np.ascontiguousarray(heads.reshape(len(values), -1))


def narrowed(config: EncoderConfig, ops: Ops, observer: Observer) -> Observer:
    """An observer that is not shown the zeros of a device's heads."""
    wide = -(-config.head_dim // ops.head_dim_multiple) * ops.head_dim_multiple

    def observe(event: LinearEvent) -> None:
        if event.name.endswith(".attention_output"):
            event = replace(event, hidden=narrow(event.hidden, wide, config))
        elif event.name.endswith(".qkv"):
            event = replace(event, out=narrow(event.out, wide, config))
        observer(event)

    return observe


def interleaved_seconds(runs: Sequence[PreparedRun], rounds: int = 5) -> list[float]:
    """Median seconds of each run; rounds alternate, so that a busy moment meets all of them."""
    for run in runs:
        run.seconds()
    taken = np.array([[run.seconds() for run in runs] for _ in range(rounds)])
    medians: list[float] = np.median(taken, axis=0).tolist()
    return medians


def layer_flops(
    layer: LayerWeights, num_tokens: int, sum_squared_seqlens: int, *, sparse: bool = False
) -> int:
    """Floating-point operations of one layer's products; a multiply-add counts two.

    Args:
        layer: its own shapes are used.
        num_tokens: of all texts.
        sum_squared_seqlens: of all texts.
        sparse: count no product with a weight that is zero.
    """
    linear = sum(
        np.count_nonzero(part.weight) if sparse else part.weight.size
        for part in (layer.qkv, layer.attention_output, layer.intermediate, layer.output)
    )
    context = layer.qkv.weight.shape[0] // 3
    return int(2 * num_tokens * linear + 4 * context * sum_squared_seqlens)


def encoder_flops(weights: EncoderWeights, texts: TextRun) -> int:
    """Floating-point operations of all layers over these texts; of sparse ones, the needed."""
    sparse = texts.loaded.config.sparsity is not None
    seqlens = [ids.size for ids in texts.tokenized.input_ids]
    squares = sum(n * n for n in seqlens)
    return sum(layer_flops(layer, sum(seqlens), squares, sparse=sparse) for layer in weights.layers)
