"""Fits a layer's matrices to what its outputs should be: least squares, and Gauss-Newton steps.

The second matrix of a feed-forward layer enters linearly and is solved for. The first one stands
before the activation g. With Z what the activation gets and X the inputs, a change D of the first
matrix changes the outputs by W2 (g'(Z) * (D X)). The normal matrix of that least-squares problem is
a sum of Kronecker products over tokens; it is replaced by the product of both factors' means
(Martens and Grosse, 2015, arXiv 1503.05671), which is inverted in closed form, and the length of
the step is the best one along the line. After each step the second matrix is solved for again, and
a step that does not help on tokens held out is not taken and is the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.weights.checkpoint import LinearWeights
from minibert.weights.prune import Moments

FloatArray = NDArray[Any]
Activate = Callable[[FloatArray], None]
"""Replaces values by those of the activation."""

MEAN_WEIGHT = 4.0
"""How much more the error of a text's mean counts than that of a token."""
CHECK_EVERY = 5
"""Every fifth block checks instead of fitting."""
STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Ridges to choose from, as shares of the mean second moment of a feature."""

_SLOPE_STEP = 2.0**-6  # a derivative by differences is exact enough for a direction
_NEURON_DAMPING = 0.3
_INPUT_DAMPING = 0.03
_SAMPLE = 8192  # tokens that the curvature and the step's length rest on
_LEAST_GAIN = 2e-3  # a step must lower the held-out error by this share, or it is the last


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens of whole texts.

    Attributes:
        hidden: (num_tokens, in_features), inputs of the layer.
        target: (num_tokens, out_features), what its outputs should be.
        cu_seqlens: (num_seqs + 1,) bounds of the texts.
    """

    hidden: FloatArray
    target: FloatArray
    cu_seqlens: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Fit:
    """A linear map (out_features, in_features + 1), the last column its bias.

    Attributes:
        solution: from the fitting tokens alone.
        strength: of the ridge; None where no fit was better than what it started from.
        error: mean squared error on the checking tokens.
    """

    solution: FloatArray
    strength: float | None
    error: float


def fit_linear(
    blocks: Sequence[Block], linear: LinearWeights, metric: FloatArray | None = None
) -> LinearWeights:
    """Fit a linear layer, no further from its weights than pays on texts held out.

    Args:
        blocks: at least `CHECK_EVERY`, or nothing changes.
        linear: where the ridge pulls to.
        metric: (out_features,) weights of the output features when the ridge is chosen.
    """
    scale = _scale(metric, len(linear.weight))
    prior = _augmented(linear) * scale[:, None]
    sums = _sums(((b.hidden, b.target * scale, b.cu_seqlens) for b in blocks), prior.shape)
    return _split(_whole(sums, _best_ridge(sums, prior), prior), scale, linear)


def fit_feed_forward(
    blocks: Sequence[Block],
    intermediate: LinearWeights,
    output: LinearWeights,
    activate: Activate,
    *,
    steps: int,
    metric: FloatArray | None = None,
) -> tuple[LinearWeights, LinearWeights]:
    """Fit both matrices of a feed-forward layer.

    Args:
        blocks: inputs of the first matrix, and what the second should give without the residual.
        intermediate: the first matrix, (intermediate_size, hidden_size).
        output: the second, (hidden_size, intermediate_size).
        activate: between the two.
        steps: Gauss-Newton steps of the first matrix, at most; 0 fits the second alone.
        metric: (hidden_size,) weights of the output features, such as the layer_norm's.

    Returns:
        Both matrices, of the same shapes.
    """
    scale = _scale(metric, len(output.weight))
    prior = _augmented(output) * scale[:, None]
    first = _augmented(intermediate)

    def sums(first: FloatArray) -> tuple[Moments, Moments]:
        wide = ((_forward(b.hidden, first), b) for b in blocks)
        rows = ((_activated(z, activate), b.target * scale, b.cu_seqlens) for z, b in wide)
        return _sums(rows, prior.shape)

    found = sums(first)
    fit = _best_ridge(found, prior)
    fitting = [b for i, b in enumerate(blocks) if not _checks(i)]
    for _ in range(steps):
        step = _newton_step(fitting, first, fit.solution, scale, activate)
        candidate = first + step
        candidate_sums = sums(candidate)
        better = _best_ridge(candidate_sums, fit.solution)
        if not better.error < fit.error:
            break
        gained = 1.0 - better.error / fit.error
        first, prior, found, fit = candidate, fit.solution, candidate_sums, better
        if gained < _LEAST_GAIN:
            break
    changed = LinearWeights(
        np.ascontiguousarray(first[:, :-1], np.float32), first[:, -1].astype(np.float32)
    )
    return changed, _split(_whole(found, fit, prior), scale, output)


def _newton_step(
    blocks: Sequence[Block],
    first: FloatArray,
    second: FloatArray,
    scale: FloatArray,
    activate: Activate,
) -> FloatArray:
    """The change of the first matrix, (intermediate_size, hidden_size + 1)."""
    width, inputs = first.shape
    gradient = np.zeros((width, inputs))
    input_moments = np.zeros((inputs, inputs))
    slopes = np.zeros((width, width))
    weight = np.ascontiguousarray(second[:, :-1], np.float32)
    tokens = sampled = 0
    for block in blocks:
        z = _forward(block.hidden, first)
        missing = block.target * scale - _activated(z, activate) @ weight.T
        missing -= second[:, -1].astype(np.float32)
        slope = _slope(z, activate)
        pulled = (_with_means(missing, block.cu_seqlens) @ weight) * slope
        rows = _with_ones(block.hidden)
        gradient += pulled.T @ rows
        input_moments += rows.T @ rows
        tokens += len(rows)
        if sampled < _SAMPLE:
            slopes += slope.T @ slope
            sampled += len(rows)
    neuron_moments = slopes / sampled * (weight.T.astype(np.float64) @ weight)
    left = _with_ridge(neuron_moments, _NEURON_DAMPING)
    right = _with_ridge(input_moments / tokens, _INPUT_DAMPING)
    step = np.linalg.solve(right, np.linalg.solve(left, gradient / tokens).T).T
    # The best length along the line, to first order in the step.
    along = across = 0.0
    for block in _sample(blocks):
        z = _forward(block.hidden, first)
        missing = block.target * scale - _activated(z, activate) @ weight.T
        missing -= second[:, -1].astype(np.float32)
        moved = (_slope(z, activate) * _forward(block.hidden, step)) @ weight.T
        weighted = _with_means(moved, block.cu_seqlens)
        along += float(np.vdot(weighted, missing))
        across += float(np.vdot(weighted, moved))
    return step * (along / across if across > 0.0 else 0.0)


def _sample(blocks: Sequence[Block]) -> list[Block]:
    chosen: list[Block] = []
    tokens = 0
    stride = max(1, len(blocks) * len(blocks[0].hidden) // _SAMPLE)
    for block in blocks[::stride]:
        if tokens >= _SAMPLE:
            break
        chosen.append(block)
        tokens += len(block.hidden)
    return chosen


def _best_ridge(sums: tuple[Moments, Moments], prior: FloatArray) -> Fit:
    train, check = sums
    best = Fit(prior, None, check.error(prior))
    if check.num_tokens == 0:
        return best
    rising = 0
    for strength in STRENGTHS:
        solution = _ridge(train, prior, strength)
        error = check.error(solution)
        rising = 0 if error < best.error else rising + 1
        if error < best.error:
            best = Fit(solution, strength, error)
        elif rising == 2 and best.strength is not None:
            break  # the error has one valley
    return best


def _whole(sums: tuple[Moments, Moments], fit: Fit, prior: FloatArray) -> FloatArray:
    """With the strength settled, all tokens count."""
    if fit.strength is None:
        return fit.solution
    return _ridge(sums[0] + sums[1], prior, fit.strength)


def _ridge(moments: Moments, prior: FloatArray, strength: float) -> FloatArray:
    gram = moments.gram
    ridge = strength * float(np.trace(gram)) / len(gram)
    left = gram + ridge * np.eye(len(gram))
    return np.asarray(np.linalg.solve(left, (moments.cross + ridge * prior).T).T)


def _sums(rows: Any, shape: tuple[int, ...]) -> tuple[Moments, Moments]:
    """Moments of the fitting and of the checking blocks."""
    train = check = Moments.empty(shape[1] - 1, shape[0])
    for i, (hidden, target, cu_seqlens) in enumerate(rows):
        if _checks(i):
            check = check.plus(hidden, target, cu_seqlens, mean_weight=MEAN_WEIGHT)
        else:
            train = train.plus(hidden, target, cu_seqlens, mean_weight=MEAN_WEIGHT)
    return train, check


def _checks(i: int) -> bool:
    return i % CHECK_EVERY == CHECK_EVERY - 1


def _scale(metric: FloatArray | None, features: int) -> NDArray[np.float32]:
    """The metric without zeros, which could not be divided by again."""
    if metric is None:
        return np.ones(features, np.float32)
    size = np.abs(metric).astype(np.float32)
    return np.maximum(size, max(0.05 * float(size.mean()), 1e-6))


def _augmented(linear: LinearWeights) -> FloatArray:
    bias = np.zeros(len(linear.weight)) if linear.bias is None else linear.bias
    return np.concatenate((linear.weight, bias[:, None]), axis=1).astype(np.float64)


def _split(solution: FloatArray, scale: FloatArray, old: LinearWeights) -> LinearWeights:
    if np.array_equal(solution, _augmented(old) * scale[:, None]):
        return old
    values = solution / scale[:, None]
    return LinearWeights(
        np.ascontiguousarray(values[:, :-1], np.float32), values[:, -1].astype(np.float32)
    )


def _forward(hidden: FloatArray, augmented: FloatArray) -> FloatArray:
    weight = np.asarray(augmented, np.float32)
    out: FloatArray = hidden @ weight[:, :-1].T
    out += weight[:, -1]
    return out


def _activated(values: FloatArray, activate: Activate) -> FloatArray:
    out = values.copy()
    activate(out)
    return out


def _slope(values: FloatArray, activate: Activate) -> FloatArray:
    above, below = values + _SLOPE_STEP, values - _SLOPE_STEP
    activate(above)
    activate(below)
    above -= below
    above /= 2.0 * _SLOPE_STEP
    return above


def _with_ones(hidden: FloatArray) -> FloatArray:
    return np.concatenate((hidden, np.ones((len(hidden), 1), np.float32)), axis=1)


def _with_means(rows: FloatArray, cu_seqlens: NDArray[np.int32]) -> FloatArray:
    """Rows, each plus MEAN_WEIGHT times the mean of its text: the gradient of both errors."""
    counts = np.diff(cu_seqlens)
    means = np.add.reduceat(rows, cu_seqlens[:-1], axis=0) / counts[:, None]
    out: FloatArray = rows + np.repeat(MEAN_WEIGHT * means, counts, axis=0)
    return out.astype(np.float32, copy=False)


def _with_ridge(moments: FloatArray, damping: float) -> FloatArray:
    ridge = damping * max(float(np.trace(moments)) / len(moments), 1e-12)
    return moments + ridge * np.eye(len(moments))
