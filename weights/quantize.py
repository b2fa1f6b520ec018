"""Weights to int8 with a scale per output feature, or to int4 with a scale per group.

Symmetric: zero stays zero and no correction is needed. A row's scale maps its largest magnitude to
127, so that one value of every row is 127 or -127 (`minibert.weights.stored` says why that
matters). Rounding is to the nearest, or second-order: columns are rounded one after the other, and
what rounding one of them does to the layer's output is made good by the columns still to come, by
least squares under the second moments of the layer's inputs (Hassibi and Stork, 1993; for weights
of language models Frantar et al., 2022, arXiv 2210.17323).

Activations are quantised when they arrive, by the kernels, per token and with a zero point, so that
one-sided inputs (after GELU) use all 256 steps; `quantize_activations` is that, in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibert.weights.columns import settle_columns
from minibert.weights.statistics import LinearStatistics
from minibert.weights.stored import (
    GROUP_COLUMNS,
    dequantize,
    dequantize_int4,
    num_groups,
    pack_int4,
    round_scale,
)

Float32 = NDArray[np.float32]
FloatArray = NDArray[Any]
Rounding = Literal["nearest", "second-order"]

LARGEST = {8: 127, 4: 7}
_DAMPING = 0.01  # of the mean second moment, so that features that never vary stay solvable


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """What stands in the file for one matrix, and what it means.

    Attributes:
        weight_q: as in `minibert.weights.stored`.
        weight_scale: as in `minibert.weights.stored`.
        values: the dequantised matrix, float32.
    """

    weight_q: NDArray[Any]
    weight_scale: Float32
    values: Float32


def quantize_matrix(
    weight: FloatArray,
    *,
    bits: int = 8,
    gram: FloatArray | None = None,
    keep: NDArray[np.bool_] | None = None,
) -> QuantizedMatrix:
    """Quantise a matrix row by row.

    Args:
        weight: (rows, columns).
        bits: 8, a scale per row; or 4, a scale per `GROUP_COLUMNS` columns of a row.
        gram: second moments of the inputs (columns, columns), any scale, for second-order rounding;
            None rounds to the nearest.
        keep: (rows, columns) where second-order rounding may make a zero something else; the
            zeros of a sparse matrix stay. Everywhere when None.
    """
    values = np.asarray(weight, np.float64)
    scale = _scales(values, bits)
    columns = values.shape[1]
    spread = scale[:, None] if bits == 8 else np.repeat(scale, GROUP_COLUMNS, axis=1)[:, :columns]
    spread = np.broadcast_to(spread, values.shape).astype(np.float64)
    steps = np.divide(values, spread, where=spread > 0, out=np.zeros_like(values))
    if gram is None:
        q = np.clip(np.rint(steps), -LARGEST[bits], LARGEST[bits])
    else:
        q = _round_second_order(steps, spread, np.asarray(gram, np.float64), LARGEST[bits], keep)
    weight_q = q.astype(np.int8)
    if bits == 8:
        return QuantizedMatrix(weight_q, scale, dequantize(weight_q, scale))
    return QuantizedMatrix(pack_int4(weight_q), scale, dequantize_int4(weight_q, scale))


def _scales(values: FloatArray, bits: int) -> Float32:
    if bits == 8:
        return round_scale(np.abs(values).max(axis=1) / LARGEST[bits])
    rows, columns = values.shape
    groups = num_groups(columns)
    padded = np.pad(np.abs(values), ((0, 0), (0, groups * GROUP_COLUMNS - columns)))
    return round_scale(padded.reshape(rows, groups, GROUP_COLUMNS).max(axis=2) / LARGEST[bits])


def _round_second_order(
    steps: FloatArray,
    spread: FloatArray,
    gram: FloatArray,
    largest: int,
    keep: NDArray[np.bool_] | None,
) -> FloatArray:
    """Round column by column, each column's error spread over those not yet rounded.

    Args:
        steps: (rows, columns), weight / scale.
        spread: (rows, columns), the scale of each value.
        gram: (columns, columns).
        largest: greatest magnitude.
        keep: where a value may differ from 0; everywhere when None.
    """
    columns = steps.shape[1]
    # The largest value of a row keeps its step, which the stored form promises.
    peak = np.abs(steps).argmax(axis=1)
    pinned = np.arange(columns)[None, :] == peak[:, None]
    top = np.rint(np.take_along_axis(steps, peak[:, None], axis=1))
    moments = gram + np.eye(columns) * (_DAMPING * max(np.trace(gram) / columns, 1e-12))
    q = np.zeros_like(steps)

    def settle(j: int, column: FloatArray) -> FloatArray:
        scale = spread[:, j]
        wanted = np.divide(column, scale, where=scale > 0, out=np.zeros(len(scale)))
        q[:, j] = np.clip(np.rint(wanted), -largest, largest)
        if largest == LARGEST[8]:
            q[:, j] = np.where(pinned[:, j], top[:, 0], q[:, j])
        if keep is not None:
            q[:, j] *= keep[:, j]
        return q[:, j] * scale

    settle_columns(steps * spread, moments, settle)
    return q


def output_error(weight: FloatArray, changed: FloatArray, statistics: LinearStatistics) -> float:
    """Relative error of a layer's outputs over the calibration tokens, root mean square.

    Args:
        weight: (out_features, in_features).
        changed: what replaces it.
        statistics: of the layer's inputs.
    """
    difference = np.asarray(weight, np.float64) - changed
    original = np.asarray(weight, np.float64)
    wrong = np.einsum("ij,ij->", difference @ statistics.gram, difference)
    whole = np.einsum("ij,ij->", original @ statistics.gram, original)
    return float(np.sqrt(max(wrong, 0.0) / max(whole, 1e-300)))


def migration_scales(
    absmax: FloatArray, weight: FloatArray, *, strength: float = 0.5
) -> NDArray[np.float32]:
    """Factors that move outliers of a linear layer's inputs into its weights.

    A feature divided by s in the layer before, and the matching column multiplied by s here, give
    the same output; what is hard to quantise moves from the activations to the weights (Xiao et
    al., 2022, arXiv 2211.10438). The factors are powers of two, so both changes are exact in
    floating point. BERT normalises after the residual is added, so the output of a layer_norm is
    also a residual and cannot be rescaled; the values of attention can, and so can a feed-forward
    layer behind relu.

    Args:
        absmax: (in_features,) largest magnitude of each input feature.
        weight: (out_features, in_features).
        strength: 0 leaves the activations as they are, 1 makes all features equally large.

    Returns:
        (in_features,) s, powers of two; features that never occur keep 1.
    """
    columns = np.abs(weight).max(axis=0)
    usable = (absmax > 0) & (columns > 0)
    ratio = np.ones(absmax.shape)
    ratio[usable] = absmax[usable] ** strength / columns[usable] ** (1.0 - strength)
    if not usable.any():
        return ratio.astype(np.float32)
    exponents = np.rint(np.log2(ratio[usable] / np.median(ratio[usable])))
    scales = np.ones(absmax.shape, np.float32)
    scales[usable] = np.exp2(exponents)
    return scales


def quantize_activations(
    hidden: FloatArray,
    *,
    asymmetric: bool = True,
    threshold: tuple[float, float] | None = None,
) -> FloatArray:
    """Quantise to 8 bits and back.

    Args:
        hidden: (num_rows, in_features).
        asymmetric: 256 steps from the least to the greatest value, with zero on a step; else 255
            steps centred on zero.
        threshold: (low, high) of a static scale, beyond which values saturate; None takes each
            row's own range (dynamic, as the kernels do by themselves).

    Returns:
        What the quantised values stand for, in the dtype of `hidden`; NaN in rows that are not
        finite, which nothing may hide.
    """
    if threshold is None:
        low = np.minimum(hidden.min(axis=1, keepdims=True), 0.0)
        high = np.maximum(hidden.max(axis=1, keepdims=True), 0.0)
    else:
        low, high = (np.full((hidden.shape[0], 1), value) for value in threshold)
    if not asymmetric:
        high = np.maximum(high, -low)
        low = -high
    steps = 255.0 if asymmetric else 254.0
    unit = np.where(high > low, (high - low) / steps, 1.0)
    zero = np.rint(-low / unit)
    q = np.clip(np.rint(hidden / unit) + zero, 0.0, steps)
    finite = np.isfinite(hidden).all(axis=1, keepdims=True)
    return np.asarray(np.where(finite, (q - zero) * unit, np.nan), hidden.dtype)
