from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.precision import PRECISIONS, Precision, quantize_embeddings

RNG = np.random.default_rng(0)


def theirs(embeddings: np.ndarray, precision: str, **options: Any) -> np.ndarray:
    from sentence_transformers.util import quantize_embeddings as reference

    return np.asarray(reference(embeddings, precision, **options))  # type: ignore[call-overload]


def same(embeddings: np.ndarray, precision: Precision, **options: Any) -> None:
    ours = quantize_embeddings(embeddings, precision, **options)
    reference = theirs(embeddings, precision, **options)
    assert ours.dtype == reference.dtype
    assert ours.shape == reference.shape
    assert ours.tobytes() == reference.tobytes()


def rows(count: int, dimension: int, dtype: str = "float32", scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal((count, dimension)) * scale).astype(dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dimension", [1, 7, 8, 9, 384])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_levels_are_those_of_sentence_transformers(
    precision: Precision, dimension: int, dtype: str, scale: float
) -> None:
    same(rows(120, dimension, dtype, scale), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_give_no_rows(precision: Precision) -> None:
    same(np.zeros((0, 13), np.float32), precision)


@pytest.mark.parametrize("precision", ["float32", "binary", "ubinary"])
def test_one_vector_stays_one_vector(precision: Precision) -> None:
    same(rows(1, 13)[0], precision)
    same(rows(1, 13), precision)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_dimensions_of_no_width_use_step_one(precision: Precision) -> None:
    values = rows(110, 6)
    values[:, 1] = 0.25
    values[:, 3] = 0.0
    values[:, 5] = -7.5
    same(values, precision)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_zeros_and_signed_zeros_are_not_positive(precision: Precision) -> None:
    same(np.array([[0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 0.0, 2.0, 3.0]], np.float32), precision)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_given_ranges_clip_what_lies_outside(precision: Precision) -> None:
    values = rows(20, 9, scale=3.0)
    ranges = np.vstack([np.full(9, -1.0), np.full(9, 1.0)])
    same(values, precision, ranges=ranges)
    same(values, precision, ranges=ranges.astype(np.float32))
    same(values[:1], precision, ranges=ranges)
    same(values[0], precision, ranges=ranges)
    ours = quantize_embeddings(values, precision, ranges=ranges)
    assert ours.min() == np.iinfo(ours.dtype).min
    assert ours.max() == np.iinfo(ours.dtype).max


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_ranges_come_from_calibration_embeddings(precision: Precision) -> None:
    calibration = rows(150, 9)
    same(rows(20, 9), precision, calibration_embeddings=calibration)
    same(rows(1, 9), precision, calibration_embeddings=calibration)
    same(rows(1, 9)[0], precision, calibration_embeddings=calibration)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_ranges_win_over_calibration_embeddings(precision: Precision) -> None:
    ranges = np.vstack([np.full(9, -2.0), np.full(9, 2.0)])
    same(rows(20, 9), precision, ranges=ranges, calibration_embeddings=rows(150, 9))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_values_on_the_borders_of_levels_fall_to_the_same_side(precision: Precision) -> None:
    levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255.0)
    same(
        np.concatenate([levels, levels * 3 - 1, np.nextafter(levels, np.float32(2))], 1), precision
    )


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_few_rows_are_warned_about_and_still_the_same(precision: Precision) -> None:
    values = rows(99, 5)
    with pytest.warns(UserWarning, match="99 embeddings; at least 100"):
        ours = quantize_embeddings(values, precision)
    assert ours.tobytes() == theirs(values, precision).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_embeddings(rows(100, 5), precision)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [(1, 6), (6,)])
def test_one_row_has_no_range_of_its_own(precision: Precision, shape: tuple[int, ...]) -> None:
    values = RNG.standard_normal(shape).astype(np.float32)
    with pytest.raises(ValueError):
        theirs(values, precision)
    with pytest.raises(InputError, match=f"{precision} must have ranges or calibration_embeddings"):
        quantize_embeddings(values, precision)


@pytest.mark.parametrize(
    ("precision", "options", "words"),
    [
        ("int4", {}, ["precision", "ubinary", "'int4'"]),
        (None, {}, ["precision", "None"]),
        (["int8"], {}, ["precision", "['int8']"]),
        ("int8", {"ranges": np.zeros((2, 5))}, ["ranges", "(2, 6)", "(2, 5)"]),
        ("int8", {"ranges": np.zeros(6)}, ["ranges", "(2, 6)", "(6,)"]),
        ("uint8", {"calibration_embeddings": np.zeros((9, 5))}, ["(2, 6)", "(2, 5)"]),
        ("uint8", {"calibration_embeddings": np.zeros((0, 6))}, ["calibration_embeddings", "one"]),
    ],
)
def test_what_does_not_fit_is_refused(
    precision: Any, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        quantize_embeddings(rows(120, 6), precision, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lists_of_numbers_are_taken_as_arrays(precision: Precision) -> None:
    values = rows(120, 6)
    options: dict[str, Any] = {}
    if precision in ("int8", "uint8"):
        options = {"calibration_embeddings": rows(120, 6)}
    expected = quantize_embeddings(values.astype(np.float64), precision, **options)
    options = {name: array.tolist() for name, array in options.items()}
    found = quantize_embeddings(values.tolist(), precision, **options)  # type: ignore[arg-type]
    assert found.tobytes() == expected.tobytes()
    with pytest.raises(InputError, match="embeddings must be an array of numbers"):
        quantize_embeddings([[0.5, 0.5], [0.5]], precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_levels_of_numbers_that_are_not_finite_are_refused(
    precision: Precision, bad: float
) -> None:
    values = rows(120, 6)
    spoilt = values.copy()
    spoilt[3, 2] = bad
    ranges = np.vstack([np.full(6, -1.0), np.full(6, 1.0)])
    spoilt_ranges = ranges.copy()
    spoilt_ranges[1, 2] = bad
    calls: list[tuple[str, np.ndarray, dict[str, np.ndarray]]] = [
        ("embeddings", spoilt, {}),
        ("embeddings", spoilt, {"ranges": ranges}),
        ("ranges", values, {"ranges": spoilt_ranges}),
        ("ranges", values, {"calibration_embeddings": spoilt}),
    ]
    for name, embeddings, options in calls:
        with pytest.raises(InputError, match=f"{name} must be finite for {precision}"):
            quantize_embeddings(embeddings, precision, **options)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_integers_are_not_quantised_again(dtype: str) -> None:
    with pytest.raises(InputError, match=f"floating to be quantised, got {dtype}"):
        quantize_embeddings(np.zeros((3, 4), dtype), "binary")
