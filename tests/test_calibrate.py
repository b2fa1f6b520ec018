from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.weights.calibrate import (
    METHODS,
    activation_range,
    kl_threshold,
    minmax_threshold,
    mse_threshold,
    percentile_threshold,
)
from minibert.weights.statistics import Histogram, LinearStatistics


def histogram_of(values: Any) -> Histogram:
    found = Histogram()
    found.add(np.asarray(values, np.float64))
    return found


def plain_kl(counts: list[int], limit: float) -> float:
    """The threshold as the method is told, bin by bin."""
    best, chosen = math.inf, 0
    for n in range(128, len(counts) + 1):
        p = [float(c) for c in counts[:n]]
        p[-1] += sum(counts[n:])
        q = [0.0] * n
        for level in range(128):
            own = [k for k in range(n) if k * 128 // n == level]
            filled = [k for k in own if counts[k] > 0]
            for k in filled:
                q[k] = sum(counts[j] for j in own) / len(filled)
        if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
            continue
        p_sum, q_sum = sum(p), sum(q)
        divergence = sum(
            a / p_sum * math.log((a / p_sum) / (b / q_sum))
            for a, b in zip(p, q, strict=True)
            if a > 0
        )
        if divergence < best - 1e-15:
            best, chosen = divergence, n
    return chosen * limit / len(counts)


@pytest.mark.parametrize("kind", ["normal", "outliers", "one_sided", "sparse"])
def test_kl_equals_a_plain_reimplementation(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(4000)
    if kind == "outliers":
        values[:4] = 25.0
    elif kind == "one_sided":
        values = np.maximum(values, -0.17)
    elif kind == "sparse":
        values = values[:150]
    found = histogram_of(values)
    found.counts = found.counts.reshape(256, -1).sum(axis=1)  # fewer bins: the plain one is slow
    assert kl_threshold(found) == pytest.approx(plain_kl(found.counts.tolist(), found.limit))


def test_minmax_clips_nothing_and_percentile_clips_its_share() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    found = histogram_of(values)
    width = found.limit / found.counts.size
    assert np.abs(values).max() <= minmax_threshold(found) <= np.abs(values).max() + width
    for percentile in (50.0, 99.0, 99.9):
        threshold = percentile_threshold(found, percentile)
        # A bin's width from the edge, and the gap to the next value in the thin tail.
        assert abs(threshold - np.percentile(np.abs(values), percentile)) <= 2 * width


def test_mse_threshold_is_the_best_of_all_edges() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    found = histogram_of(values)
    width = found.limit / found.counts.size

    def error(threshold: float) -> float:
        step = threshold / 127
        kept = np.clip(np.rint(values / step), -127, 127) * step
        return float(np.square(kept - values).mean())

    best = min(error((k + 1) * width) for k in range(200, 2048, 8))
    assert error(mse_threshold(found)) <= 1.02 * best  # the formula takes rounding as uniform


def test_kl_clips_rare_large_values_that_mse_keeps() -> None:
    """What follows GELU in BERT: nearly all values near zero, and a few large ones that matter."""
    rng = np.random.default_rng(0)
    usual = np.maximum(rng.standard_normal(100_000) * 0.6 - 0.5, -0.17)
    found = histogram_of(np.concatenate((usual, rng.uniform(3.0, 25.0, 50))))
    assert kl_threshold(found) < 3.0
    assert mse_threshold(found) > 15.0
    assert minmax_threshold(found) > 20.0


def test_one_sided_inputs_keep_their_lower_end() -> None:
    found = LinearStatistics.empty(4)
    found.add(np.maximum(np.random.default_rng(0).standard_normal((500, 4)) * 3, -0.17))
    for method in METHODS:
        low, high = activation_range(found, method)
        assert low == pytest.approx(-0.17)
        assert high > 1.0


def test_empty_histograms_and_unknown_methods() -> None:
    empty = Histogram()
    assert kl_threshold(empty) == minmax_threshold(empty) == 0.0
    with pytest.raises(InputError, match="percentile"):
        percentile_threshold(empty, 0.0)
    with pytest.raises(InputError, match="entropy"):
        activation_range(LinearStatistics.empty(1), "entropy")
