"""Activation functions in NumPy, in place, at float32 or float64.

`gelu` is x * Phi(x) with the exact normal distribution function (Hendrycks and Gimpel, 2016,
arXiv 1606.08415), never its tanh approximation. Written as

    gelu(x) = max(x, 0) - |x| * Q(|x|),     Q(a) = 0.5 * erfc(a / sqrt(2)),

it has no cancellation for negative x, where 1 + erf(x / sqrt(2)) loses digits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.ops.interface import Activation

# Q(a) * exp(a^2 / 2) as a polynomial in t = (a - 2.5) / (a + 2.5), interpolated at the Chebyshev
# nodes of 0 <= a <= 10 with 40 digits: off by 1.8e-9 in |x| * Q, which float32 evaluation brings to
# 4.6e-8, below one rounding of gelu(1).
_CENTRE = 2.5
_UPPER_TAIL = (
    1.4133132811e-01,
    -2.2806979165e-01,
    1.1313613225e-01,
    -2.4548540221e-02,
    -5.1284317883e-03,
    2.9425584742e-03,
    8.3770545898e-04,
    -3.1818658842e-04,
    -1.9918897670e-04,
    -2.8493117297e-05,
)
_erf = np.frompyfunc(math.erf, 1, 1)


def activate(values: NDArray[Any], activation: Activation) -> None:
    """Replace values by activation(values), elementwise.

    Args:
        values: float32 or float64, any shape; overwritten.
        activation: a name of `Activation`.
    """
    if activation == "gelu":
        if values.dtype == np.float64:
            values *= 0.5 * (1.0 + np.asarray(_erf(values / math.sqrt(2.0)), np.float64))
        else:
            _gelu_float32(values)
    elif activation == "gelu_tanh":
        inner = values * values * values
        inner *= 0.044715
        inner += values
        inner *= math.sqrt(2.0 / math.pi)
        np.tanh(inner, out=inner)
        inner += 1.0
        inner *= 0.5
        values *= inner
    elif activation == "relu":
        np.maximum(values, 0, out=values)
    elif activation == "silu":
        with np.errstate(over="ignore"):  # exp(large) = inf gives the right limit, 0
            values /= 1.0 + np.exp(-values)
    else:
        np.tanh(values, out=values)


def _gelu_float32(values: NDArray[np.float32]) -> None:
    magnitude = np.abs(values)
    ratio = magnitude + np.float32(_CENTRE)
    np.divide(magnitude - np.float32(_CENTRE), ratio, out=ratio)
    tail = np.full_like(ratio, _UPPER_TAIL[-1])
    for coefficient in _UPPER_TAIL[-2::-1]:
        tail *= ratio
        tail += np.float32(coefficient)
    np.multiply(magnitude, magnitude, out=ratio)
    ratio *= np.float32(-0.5)
    np.exp(ratio, out=ratio)
    tail *= ratio
    tail *= magnitude
    np.maximum(values, 0, out=values)
    values -= tail
