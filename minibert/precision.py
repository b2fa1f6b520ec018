"""Embeddings at lower precision, equal bit for bit to sentence-transformers' `quantize_embeddings`.

int8 and uint8 map each dimension's range to 256 levels; binary and ubinary keep one sign bit per
dimension, packed eight to a byte, the first dimension in the highest bit.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from minibert import log
from minibert.errors import InputError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_FEW_ROWS = 100  # below this, ranges of a batch say little about other texts


def check_precision(precision: str) -> None:
    """Refuse a precision that is not one of `PRECISIONS`.

    Raises:
        InputError: naming the allowed values.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def quantize_embeddings(
    embeddings: NDArray[Any],
    precision: Precision,
    *,
    ranges: NDArray[Any] | None = None,
    calibration_embeddings: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Quantise embeddings.

    Args:
        embeddings: (num_texts, dimension) floating; arrays, or lists of numbers.
        precision: one of `PRECISIONS`.
        ranges: (2, dimension) smallest and largest value per dimension, for int8 and uint8.
        calibration_embeddings: (n, dimension) from which ranges are taken where none are given;
            the embeddings themselves when None.

    Returns:
        float32, int8 or uint8 of the same shape, or (num_texts, ceil(dimension / 8)) int8 (binary)
        or uint8 (ubinary).

    Raises:
        InputError: integer embeddings, an unknown precision, ranges of another shape, int8 ranges
            wanted from a single embedding or from no calibration embeddings, or int8 of numbers
            that are not finite.
    """
    check_precision(precision)
    embeddings = _as_array("embeddings", embeddings)
    if not np.issubdtype(embeddings.dtype, np.floating):
        raise InputError(f"embeddings must be floating to be quantised, got {embeddings.dtype}")
    if precision == "float32":
        return embeddings.astype(np.float32, copy=False)
    if precision == "binary":
        return np.asarray(np.packbits(embeddings > 0, axis=-1) - 128, np.int8)
    if precision == "ubinary":
        return np.packbits(embeddings > 0, axis=-1)
    dtype = np.int8 if precision == "int8" else np.uint8
    if embeddings.ndim == 2 and embeddings.shape[0] == 0:
        return np.zeros(embeddings.shape, dtype)
    if ranges is None:
        given = calibration_embeddings is not None
        rows = _as_array("calibration_embeddings", calibration_embeddings) if given else embeddings
        ranges = _ranges(rows, precision, given=given)
    ranges = np.asarray(_as_array("ranges", ranges), np.float32)
    if ranges.shape != (2, embeddings.shape[-1]):
        raise InputError(f"ranges must have shape (2, {embeddings.shape[-1]}), got {ranges.shape}")
    for name, values in (("embeddings", embeddings), ("ranges", ranges)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} must be finite for {precision}, got NaN or infinity")
    starts = ranges[0]
    steps = (ranges[1] - starts) / 255
    steps = np.where(steps == 0, 1, steps)
    levels = np.clip(np.floor((embeddings - starts) / steps), 0, 255)
    return np.asarray(levels if precision == "uint8" else levels - 128, dtype)


def _as_array(name: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise InputError(f"{name} must be an array of numbers: {error}") from None


def _ranges(rows: NDArray[Any], precision: str, *, given: bool) -> NDArray[Any]:
    if not given and (rows.ndim == 1 or rows.shape[0] == 1):
        raise InputError(
            f"{precision} must have ranges or calibration_embeddings for a single embedding: "
            "its own range says nothing"
        )
    if not given and rows.shape[0] < _FEW_ROWS:
        log.warn_caller(
            f"{precision} ranges come from {rows.shape[0]} embeddings; at least {_FEW_ROWS}, or "
            "ranges of your own, give levels that fit other texts too",
        )
    if rows.ndim != 2 or not rows.shape[0]:
        raise InputError(
            f"calibration_embeddings must be at least one row of embeddings, got {rows.shape}"
        )
    return np.vstack((np.min(rows, axis=0), np.max(rows, axis=0)))
