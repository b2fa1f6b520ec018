"""Static thresholds for 8-bit activations from a histogram: four ways, and what each is good for.

A threshold T maps [-T, T] (or, one-sided, [low, T]) to the 8-bit steps; what lies beyond saturates.
A small T gives fine steps and clips, a large one clips nothing and is coarse.

| method | T |
|---|---|
| minmax | the largest magnitude seen: nothing is clipped |
| percentile | the magnitude below which 99.99 % of the values lie |
| mse | least squared error of rounding and clipping together |
| kl | least Kullback-Leibler divergence between the clipped histogram and its 128-level form |

The last is the saturating quantisation known from convolutional networks. It weighs values by how
many there are and not by how large they are; BERT's rare, huge activations, which carry meaning, it
clips away. The engine needs no threshold unless `minibert quantize --static` fixes one: its kernels
find each token's own range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError
from minibert.weights.statistics import Histogram, LinearStatistics

LEVELS = 128
"""Magnitudes that 8 signed bits tell apart."""
PERCENTILE = 99.99


def minmax_threshold(histogram: Histogram) -> float:
    """The upper edge of the last bin that is not empty."""
    filled = np.flatnonzero(histogram.counts)
    if filled.size == 0:
        return 0.0
    return float((filled[-1] + 1) * _width(histogram))


def percentile_threshold(histogram: Histogram, percentile: float = PERCENTILE) -> float:
    """The edge of the bin below which so many percent of the magnitudes lie.

    Raises:
        InputError: percentile is not above 0 and at most 100.
    """
    if not 0.0 < percentile <= 100.0:
        raise InputError(f"percentile must be above 0 and at most 100, got {percentile}")
    counts = histogram.counts
    wanted = counts.sum() * (percentile / 100.0)
    index = int(np.searchsorted(np.cumsum(counts), wanted))
    return float(min(index + 1, counts.size) * _width(histogram))


def mse_threshold(histogram: Histogram) -> float:
    """The bin edge with the least mean squared error of rounding plus clipping."""
    width = _width(histogram)
    counts = histogram.counts.astype(np.float64)
    centres = (np.arange(counts.size) + 0.5) * width
    edges = (np.arange(counts.size) + 1.0) * width
    # Rounding to steps of T / 127 costs (T / 127)^2 / 12 for each value that is not clipped.
    inside = np.cumsum(counts)
    rounding = inside * np.square(edges / (LEVELS - 1)) / 12.0
    # Sum over clipped values of (x - T)^2, from suffix sums of 1, x and x^2.
    ones, first, second = (
        np.append(np.cumsum((counts * centres**power)[::-1])[::-1][1:], 0.0) for power in (0, 1, 2)
    )
    clipping = second - 2.0 * edges * first + edges**2 * ones
    smallest = int(np.searchsorted(inside, 1.0))  # a threshold below every value is none
    return float(edges[smallest + int(np.argmin((rounding + clipping)[smallest:]))])


def kl_threshold(histogram: Histogram) -> float:
    """The bin edge whose clipped histogram loses least when it is merged to 128 levels.

    For each number of bins n from 128 up: P is the first n bins with everything beyond added to the
    last of them; Q is the first n bins without it, merged to 128 levels, each level spread evenly
    over its bins that are not empty. The n with the least KL(P || Q) wins.
    """
    counts = histogram.counts.astype(np.float64)
    total = counts.sum()
    if total == 0.0:
        return 0.0
    cumulative = np.cumsum(counts)
    best, chosen = np.inf, counts.size
    for n in range(LEVELS, counts.size + 1):
        divergence = _divergence(counts[:n], total - cumulative[n - 1])
        if divergence < best:
            best, chosen = divergence, n
    return float(chosen * _width(histogram))


def _divergence(kept: NDArray[Any], beyond: float) -> float:
    reference = kept.copy()
    reference[-1] += beyond
    level = np.arange(kept.size) * LEVELS // kept.size
    filled = kept > 0
    sums = np.bincount(level, weights=kept, minlength=LEVELS)
    sizes = np.bincount(level, weights=filled, minlength=LEVELS)
    spread = np.divide(sums, sizes, where=sizes > 0, out=np.zeros(LEVELS))
    merged = np.where(filled, spread[level], 0.0)
    present = reference > 0
    if np.any(merged[present] == 0.0):  # P has mass where Q has none
        return float("inf")
    p = reference[present] / reference.sum()
    q = merged[present] / merged.sum()
    return float(np.sum(p * np.log(p / q)))


def _width(histogram: Histogram) -> float:
    return histogram.limit / histogram.counts.size


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "minmax": minmax_threshold,
    "percentile": percentile_threshold,
    "mse": mse_threshold,
    "kl": kl_threshold,
}


def activation_range(statistics: LinearStatistics, method: str) -> tuple[float, float]:
    """(low, high) of a layer's inputs: the threshold, or where the values end before it.

    One-sided inputs keep their own lower end (after GELU about -0.17), so that the steps are not
    spent on values that never occur.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    threshold = METHODS[method](statistics.histogram)
    return max(float(statistics.low.min()), -threshold), min(
        float(statistics.high.max()), threshold
    )
