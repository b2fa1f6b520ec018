"""How long a layer takes on this machine, by its heads and its feed-forward width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from minibert.compress.run import PreparedRun, TextRun
from minibert.weights.checkpoint import EncoderWeights
from minibert.weights.prune import interpolate, prune_feed_forward, prune_heads

_COPIES = 4  # layers timed together, so that one pass is long enough
_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Seconds of one pass over the timing texts.

    Attributes:
        base: of what pruning cannot touch: embedding, pooling.
        attention: heads of a layer -> seconds, what a layer always costs included.
        feed_forward: width of a layer -> seconds beyond those of the narrowest one.
    """

    base: float
    attention: Mapping[int, float]
    feed_forward: Mapping[int, float]

    def heads(self, counts: Sequence[int]) -> list[float]:
        """Seconds of attention with so many heads, linear between measured counts."""
        return interpolate(counts, self.attention)

    def widths(self, widths: Sequence[int]) -> list[float]:
        """Seconds of a feed-forward layer of these widths, linear between measured ones."""
        return interpolate(widths, self.feed_forward)

    def total(self, weights: EncoderWeights) -> float:
        """Seconds expected of a whole model."""
        heads = self.heads([layer.num_heads for layer in weights.layers])
        widths = self.widths([len(layer.intermediate.weight) for layer in weights.layers])
        return self.base + sum(heads) + sum(widths)


def measure_latency(
    run: TextRun, weights: EncoderWeights, heads: Sequence[int], widths: Sequence[int]
) -> LatencyTable:
    """Time layers of several shapes, in turns, and keep each one's best time.

    The best and not the median: whatever else the machine does can only add to a time.

    Args:
        run: timing texts.
        weights: the model; its first layer is cut to the shapes.
        heads: counts to measure, ascending.
        widths: widths to measure, ascending, a multiple of the kernels' tile each.
    """
    layer = weights.layers[0]

    def cut(num_heads: int, width: int, copies: int = _COPIES) -> EncoderWeights:
        small = prune_feed_forward(prune_heads(layer, range(num_heads)), range(width))
        return replace(weights, layers=(small,) * copies)

    variants = [cut(count, widths[0]) for count in heads]
    variants += [cut(heads[0], width) for width in widths[1:]]
    variants.append(cut(heads[0], widths[0], 1))
    with ExitStack() as stack:
        runs = [stack.enter_context(PreparedRun(run, variant)) for variant in variants]
        for prepared in runs:
            prepared.seconds()
        taken = np.array([[prepared.seconds() for prepared in runs] for _ in range(_ROUNDS)])
    best = taken.min(axis=0)
    single, many = float(best[-1]), float(best[0])
    # Neither part takes less than no time, however late `single` was.
    base = min(max((_COPIES * single - many) / (_COPIES - 1), 0.0), float(best[:-1].min()))
    per_layer = (best[:-1] - base) / _COPIES
    # More work never takes less time: what says otherwise is noise.
    attention = np.maximum.accumulate(per_layer[: len(heads)])
    beyond = np.concatenate(([0.0], per_layer[len(heads) :] - per_layer[0]))
    feed_forward = np.maximum.accumulate(np.maximum(beyond, 0.0))
    return LatencyTable(
        base,
        dict(zip(heads, attention.tolist(), strict=True)),
        dict(zip(widths, feed_forward.tolist(), strict=True)),
    )


def flops_table(run: TextRun, weights: EncoderWeights) -> LatencyTable:
    """Operations in the place of seconds: linear in heads and width.

    The narrowest measured points are 0, so every count in between is exact.
    """
    layer = weights.layers[0]
    tokens = run.num_tokens
    squares = sum(ids.size**2 for ids in run.tokenized.input_ids)
    hidden = layer.qkv.weight.shape[1]
    context = layer.qkv.weight.shape[0] // 3
    attention = float(2 * tokens * 4 * context * hidden + 4 * context * squares)
    width = layer.intermediate.weight.shape[0]
    feed_forward = float(2 * tokens * 2 * width * hidden)
    return LatencyTable(0.0, {0: 0.0, layer.num_heads: attention}, {0: 0.0, width: feed_forward})
