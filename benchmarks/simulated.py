"""Ops in NumPy whose linear layers see 8-bit activations: to compare ways of quantising them.

Slow, and for measuring only: what the engine runs is the kernels' own int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.ops.interface import Activation
from minibert.ops.recording import NamedLinear
from minibert.ops.reference import ReferenceOps
from minibert.weights.quantize import quantize_activations

FloatArray = NDArray[Any]


class SimulatedOps(ReferenceOps):
    """`ReferenceOps` that quantises the input of every linear layer to 8 bits and back."""

    name = "simulated"

    def __init__(
        self, *, asymmetric: bool = True, ranges: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        """Choose how.

        Args:
            asymmetric: with a zero point; else symmetric.
            ranges: layer name -> (low, high), static, beyond which values saturate; a layer that is
                not named stays float. None: each row's own range, in every layer.
        """
        super().__init__("float32")
        self.asymmetric = asymmetric
        self.ranges = ranges

    def prepare_linear(
        self,
        weight: FloatArray,
        bias: FloatArray | None,
        *,
        name: str,
        dtype: str | None = None,
        sparsity: str | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> Any:
        """See `Ops.prepare_linear`; keeps the name."""
        return NamedLinear(
            name,
            super().prepare_linear(
                weight, bias, name=name, dtype=dtype, sparsity=sparsity, input_range=input_range
            ),
        )

    def linear(
        self,
        hidden: FloatArray,
        weights: Any,
        *,
        activation: Activation | None = None,
        residual: FloatArray | None = None,
    ) -> FloatArray:
        """See `Ops.linear`, of the quantised input."""
        if self.ranges is None:
            hidden = quantize_activations(hidden, asymmetric=self.asymmetric)
        elif weights.name in self.ranges:
            hidden = quantize_activations(
                hidden, asymmetric=self.asymmetric, threshold=self.ranges[weights.name]
            )
        hidden = np.asarray(hidden, np.float32)
        return super().linear(hidden, weights.inner, activation=activation, residual=residual)
