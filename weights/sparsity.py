"""Weights left out one by one, and the rest changed to make up for them.

Which go is decided by `minibert.weights.masks`. Then `columns` spreads each column's loss over the
columns after it (`minibert.weights.columns`), `least-squares` gives the kept weights the values
with the least error there is, and `regrow` searches a better mask (`minibert.weights.regrow`).
All of it works on the second moments of a layer's inputs: no labels, no gradients of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError
from minibert.weights.columns import settle_columns
from minibert.weights.masks import (
    PATTERNS,
    Mask,
    Method,
    Pattern,
    check_fraction,
    choose_mask,
    importance,
)
from minibert.weights.prune import damped
from minibert.weights.regrow import prune_and_regrow, refit_kept
from minibert.weights.statistics import LinearStatistics

FloatArray = NDArray[Any]
Reconstruct = Literal["none", "columns", "least-squares"]
DAMPING = 0.03
"""Ridge, as a share of the mean second moment of a feature."""


@dataclass(frozen=True, slots=True)
class SparsityOptions:
    """How to choose what goes, and how the rest makes up for it.

    Attributes:
        pattern: where zeros may be.
        fraction: of the weights that go, of every matrix.
        method: what ranks weights.
        reconstruct: how kept weights change.
        regrow: rounds of prune-and-regrow after the first mask; they need least-squares.
    """

    pattern: Pattern
    fraction: float = 0.5
    method: Method = "activation"
    reconstruct: Reconstruct = "least-squares"
    regrow: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: naming the option and its rule.
        """
        for name, allowed in (
            ("pattern", PATTERNS),
            ("method", get_args(Method)),
            ("reconstruct", get_args(Reconstruct)),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        check_fraction(self.pattern, self.fraction)
        if self.regrow < 0:
            raise InputError(f"regrow must be at least 0, got {self.regrow}")
        if self.regrow > 0 and self.reconstruct != "least-squares":
            raise InputError(
                f"regrow must go with reconstruct least-squares, got {self.reconstruct}"
            )


@dataclass(frozen=True, slots=True)
class SparseLinear:
    """A linear layer with weights left out.

    Attributes:
        weight: (out_features, in_features) float32, zero outside the mask.
        bias: (out_features,) float32 or None; refitted with the weights.
        mask: which weights are kept.
        output_error: relative error of the outputs, root mean square over the calibration tokens.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    mask: Mask
    output_error: float


def sparsify_linear(
    weight: FloatArray,
    bias: FloatArray | None,
    statistics: LinearStatistics,
    options: SparsityOptions,
) -> SparseLinear:
    """Leave weights of a linear layer out and make up for them.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        statistics: of the layer's inputs.
        options: which and how.

    Raises:
        InputError: in_features is no multiple of 4 and the pattern is 2:4.
    """
    columns = weight.shape[1]
    moments = statistics.gram
    original = np.asarray(weight, np.float64)
    if bias is not None:  # one more column, of an input that is always 1, and is always kept
        ends = np.append(statistics.total, statistics.num_tokens)
        moments = np.empty((columns + 1, columns + 1))
        moments[:columns, :columns] = statistics.gram
        moments[columns] = moments[:, columns] = ends
        original = np.concatenate((original, np.asarray(bias, np.float64)[:, None]), axis=1)
    moments = damped(moments, DAMPING)
    scores = importance(original[:, :columns], options.method, np.diagonal(moments)[:columns])
    mask = np.ones(original.shape, bool)
    mask[:, :columns] = choose_mask(scores, options.pattern, options.fraction)
    if options.reconstruct == "none":
        changed = original * mask
    elif options.reconstruct == "columns":
        changed = settle_columns(original, moments, lambda j, column: column * mask[:, j])
    elif options.regrow:
        changed, mask = prune_and_regrow(
            original, moments, mask, options.pattern, rounds=options.regrow, fixed=columns
        )
    else:
        changed = refit_kept(original, moments, mask)
    difference = original - changed
    wrong = np.einsum("ij,ij->", difference @ moments, difference)
    whole = np.einsum("ij,ij->", original @ moments, original)
    kept = mask[:, :columns]
    return SparseLinear(
        np.where(kept, changed[:, :columns], 0.0).astype(np.float32),
        None if bias is None else changed[:, columns].astype(np.float32),
        kept,
        float(np.sqrt(max(wrong, 0.0) / max(whole, 1e-300))),
    )
