"""Change a matrix column by column, each change made good in the columns still to come.

Under the second moments of a layer's inputs, an error in one column of its weights can be made up
for, by least squares, in the columns after it (Hassibi and Stork, 1993; for rounding Frantar et
al., 2022, arXiv 2210.17323; for leaving weights out Frantar and Alistarh, 2023, arXiv 2301.00774).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]
_BLOCK = 64  # columns whose corrections are applied to the rest in one product


def settle_columns(
    weight: FloatArray, moments: FloatArray, settle: Callable[[int, FloatArray], FloatArray]
) -> FloatArray:
    """Give every column its final values, from the first to the last.

    Args:
        weight: (out_features, in_features).
        moments: (in_features, in_features) second moments of the inputs, positive definite.
        settle: from a column's number and its values as they stand, (out_features,), to the values
            that it is to have.

    Returns:
        (out_features, in_features) float64, the settled columns.
    """
    columns = weight.shape[1]
    # Row i of the upper Cholesky factor of the inverse says how column i's error moves the later
    # ones.
    upper = np.linalg.cholesky(np.linalg.inv(moments)).T
    current = np.array(weight, np.float64)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = np.zeros((current.shape[0], end - begin))
        for j in range(begin, end):
            final = settle(j, current[:, j])
            error = (current[:, j] - final) / upper[j, j]
            current[:, j + 1 : end] -= error[:, None] * upper[j, j + 1 : end]
            current[:, j] = final
            errors[:, j - begin] = error
        current[:, end:] -= errors @ upper[begin:end, end:]
    return current
