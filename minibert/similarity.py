"""Scores between embeddings: the four functions of sentence-transformers, larger is more alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_BLOCK = 1 << 22  # elements of the differences that a distance holds at once


def similarity(
    first: NDArray[Any], second: NDArray[Any], function: str = "cosine"
) -> NDArray[np.floating[Any]]:
    """All scores between two sets of embeddings.

    Args:
        first: (n, dimension) or (dimension,).
        second: (m, dimension) or (dimension,).
        function: cosine, dot, euclidean or manhattan; the last two are negative distances.

    Returns:
        (n, m) float32; float64 where either set is an array of that.

    Raises:
        InputError: an unknown function, something other than numbers, or dimensions that differ.
    """
    if function not in SIMILARITIES:
        raise InputError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {function!r}")
    doubles = any(getattr(rows, "dtype", None) == np.float64 for rows in (first, second))
    dtype = np.float64 if doubles else np.float32
    try:
        a, b = (np.atleast_2d(np.asarray(rows, dtype)) for rows in (first, second))
    except (TypeError, ValueError) as error:
        raise InputError(f"embeddings must be arrays of numbers: {error}") from None
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"embeddings must be two-dimensional and of one width, got {a.shape} and {b.shape}"
        )
    if function == "cosine":
        a, b = normalize_rows(a), normalize_rows(b)
    if function in ("cosine", "dot"):
        return np.asarray(a @ b.T)
    # Differences first: |a - b|^2 by its expansion cancels for near vectors, even in float64.
    out = np.empty((len(a), len(b)), dtype)
    rows = max(1, _BLOCK // max(1, b.size))
    for begin in range(0, len(a), rows):
        differences = a[begin : begin + rows, None, :] - b  # (rows, m, dimension)
        if function == "euclidean":
            distances = np.sqrt(np.square(differences, out=differences).sum(axis=-1))
        else:
            distances = np.abs(differences, out=differences).sum(axis=-1)
        np.negative(distances, out=out[begin : begin + rows])
    return out


def normalize_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Each row divided by its length, at least 1e-12 (torch.nn.functional.normalize).

    Returns:
        float64 for float64, else float32.
    """
    norms = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=-1, keepdims=True))
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype)
