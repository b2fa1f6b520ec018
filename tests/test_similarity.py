from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.similarity import SIMILARITIES, normalize_rows, similarity

RNG = np.random.default_rng(0)
EPS = float(np.finfo(np.float32).eps)
THEIRS = {
    "cosine": "cos_sim",
    "dot": "dot_score",
    "euclidean": "euclidean_sim",
    "manhattan": "manhattan_sim",
}


def theirs(function: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from sentence_transformers import util

    return np.asarray(getattr(util, THEIRS[function])(first, second).numpy())


def rows(count: int, dimension: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal((count, dimension)) * scale).astype(np.float32)


@pytest.mark.parametrize("function", SIMILARITIES)
@pytest.mark.parametrize(("n", "m", "dimension"), [(1, 1, 1), (5, 9, 33), (40, 3, 384)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_scores_are_no_further_from_float64_than_those_of_sentence_transformers(
    function: str, n: int, m: int, dimension: int, scale: float
) -> None:
    first, second = rows(n, dimension, scale), rows(m, dimension, scale)
    exact = theirs(function, first.astype(np.float64), second.astype(np.float64))
    plain = theirs(function, first, second)
    ours = similarity(first, second, function)
    assert ours.dtype == np.float32
    assert ours.shape == (n, m)
    tiny = 2 * EPS * float(np.abs(exact).max())  # a rounding to float32
    assert np.abs(ours - exact).max() <= 2 * np.abs(plain - exact).max() + tiny


@pytest.mark.parametrize("function", SIMILARITIES)
def test_float64_stays_float64(function: str) -> None:
    first, second = rows(5, 33).astype(np.float64) + 1e-12, rows(4, 33)
    for a, b in ((first, second), (second, first)):
        exact = theirs(function, a.astype(np.float64), b.astype(np.float64))
        ours = similarity(a, b, function)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-13)  # of scores up to 60


@pytest.mark.parametrize("function", SIMILARITIES)
def test_one_vector_is_one_row(function: str) -> None:
    first, second = rows(3, 8), rows(1, 8)[0]
    assert similarity(first, second, function).shape == (3, 1)
    assert similarity(second, first, function).shape == (1, 3)
    assert similarity(second, second, function).shape == (1, 1)


@pytest.mark.parametrize("function", ["euclidean", "manhattan"])
def test_a_vector_has_no_distance_to_itself_and_little_to_its_neighbour(function: str) -> None:
    first = rows(6, 384)
    assert not np.diagonal(similarity(first, first, function)).any()
    second = first + np.float32(1e-4)
    exact = theirs(function, first.astype(np.float64), second.astype(np.float64))
    ours = similarity(first, second, function)
    # A distance is a sum of non-negative terms: relative error of a few roundings.
    assert np.abs(np.diagonal(ours) / np.diagonal(exact) - 1).max() <= 384 * EPS


def test_manhattan_in_blocks_is_manhattan(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rows(23, 8), rows(7, 8)
    whole = similarity(first, second, "manhattan")
    monkeypatch.setattr("minibert.similarity._BLOCK", 100)
    assert np.array_equal(similarity(first, second, "manhattan"), whole)


@pytest.mark.parametrize("function", SIMILARITIES)
def test_no_rows_have_no_scores(function: str) -> None:
    assert similarity(np.zeros((0, 4), np.float32), rows(3, 4), function).shape == (0, 3)
    assert similarity(rows(3, 4), np.zeros((0, 4), np.float32), function).shape == (3, 0)


def test_a_vector_of_zeros_is_like_nothing() -> None:
    first = np.zeros((2, 5), np.float32)
    second = rows(3, 5)
    assert np.array_equal(similarity(first, second), theirs("cosine", first, second))


def test_rows_are_normalised_as_torch_does() -> None:
    import torch

    values = np.concatenate([rows(50, 384), rows(5, 384, 1e-20), rows(5, 384, 1e18)])
    values[0] = 0
    values[1] = 1e-14
    exact = torch.nn.functional.normalize(torch.from_numpy(values.astype(np.float64))).numpy()
    ours = normalize_rows(values)
    assert ours.dtype == np.float32
    assert np.abs(ours - exact).max() <= EPS  # one rounding of numbers up to 1
    ours = normalize_rows(values.astype(np.float64))
    assert ours.dtype == np.float64
    assert np.abs(ours - exact).max() <= 4 * np.finfo(np.float64).eps  # sums in another order


@pytest.mark.parametrize(
    ("first", "second", "function", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "cosine", ["one width", "(2, 3)", "(2, 4)"]),
        (np.zeros((2, 3, 1)), np.zeros((2, 3)), "dot", ["two-dimensional", "(2, 3, 1)"]),
        (np.zeros((2, 3)), np.zeros((2, 3)), "hamming", ["cosine, dot", "'hamming'"]),
        (np.zeros((2, 3)), np.zeros((2, 3)), None, ["cosine, dot", "None"]),
        (np.array([["a", "b"]]), np.zeros((2, 2)), "dot", ["numbers"]),
    ],
)
def test_what_does_not_fit_is_refused(
    first: np.ndarray, second: np.ndarray, function: Any, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        similarity(first, second, function)
    for word in words:
        assert word in str(caught.value)
