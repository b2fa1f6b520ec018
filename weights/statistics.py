"""What calibration text shows of a linear layer's inputs: moments, range, histogram.

Collected by `minibert.ops.recording`, read by quantize, calibrate and prune. Nothing here runs a
model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]
HISTOGRAM_BINS = 2048


@dataclass(slots=True)
class Histogram:
    """Counts of absolute values in equal bins from 0 to `limit`, which grows by doubling.

    Doubling merges two bins into one, so earlier values are never lost and need not be kept.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, np.int64))
    limit: float = 0.0

    def add(self, values: FloatArray) -> None:
        """Count |values|."""
        if values.size == 0:
            return
        magnitudes = np.abs(values).reshape(-1)
        largest = float(magnitudes.max())
        if self.limit == 0.0:
            self.limit = largest
        if self.limit == 0.0:  # zeros only, so far
            self.counts[0] += magnitudes.size
            return
        while largest > self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate((merged, np.zeros_like(merged)))
            self.limit *= 2.0
        bins = self.counts.size
        index = np.minimum((magnitudes * (bins / self.limit)).astype(np.int64), bins - 1)
        self.counts += np.bincount(index, minlength=bins)


@dataclass(slots=True)
class LinearStatistics:
    """Inputs of one linear layer over all calibration tokens.

    Attributes:
        num_tokens: how many rows were seen.
        gram: (in_features, in_features) float64, sum of x x^T.
        total: (in_features,) float64, sum of x.
        low: (in_features,) least value of each feature, at most 0.
        high: (in_features,) greatest value of each feature, at least 0.
        histogram: of all absolute values.
    """

    num_tokens: int
    gram: FloatArray
    total: FloatArray
    low: FloatArray
    high: FloatArray
    histogram: Histogram

    @classmethod
    def empty(cls, in_features: int) -> LinearStatistics:
        """Statistics of no token."""
        zeros = np.zeros(in_features)
        square = np.zeros((in_features, in_features))
        return cls(0, square, zeros.copy(), zeros.copy(), zeros.copy(), Histogram())

    def add(self, hidden: FloatArray) -> None:
        """Take in rows (num_rows, in_features)."""
        if hidden.shape[0] == 0:
            return
        self.num_tokens += hidden.shape[0]
        self.gram += hidden.T @ hidden
        self.total += hidden.sum(axis=0, dtype=np.float64)
        np.minimum(self.low, hidden.min(axis=0), out=self.low)
        np.maximum(self.high, hidden.max(axis=0), out=self.high)
        self.histogram.add(hidden)

    @property
    def absmax(self) -> FloatArray:
        """(in_features,) largest absolute value of each feature."""
        return np.maximum(self.high, -self.low)

    def head_moments(self, num_heads: int) -> FloatArray:
        """(num_heads,) mean square of each head's values, for the input of an output projection."""
        diagonal = np.diagonal(self.gram).reshape(num_heads, -1)
        mean: FloatArray = diagonal.mean(axis=1) / max(self.num_tokens, 1)
        return mean
