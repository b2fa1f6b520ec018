"""Masks, least squares and prune-and-regrow against NumPy's own solvers and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.weights.columns import settle_columns
from minibert.weights.masks import choose_mask
from minibert.weights.prune import damped
from minibert.weights.quantize import quantize_matrix
from minibert.weights.regrow import exchange, prune_and_regrow, refit_kept
from minibert.weights.sparsity import DAMPING, SparsityOptions, sparsify_linear
from minibert.weights.statistics import LinearStatistics

PATTERNS = ("unstructured", "2:4", "block")


def inputs(rows: int, columns: int, seed: int = 0) -> Any:
    """Correlated, of very different sizes, and not centred."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * rng.permutation(
        np.geomspace(1, 0.05, columns)
    )
    return (rng.standard_normal((rows, columns)) @ mixing + 0.3).astype(np.float32)


def statistics(hidden: Any) -> LinearStatistics:
    found = LinearStatistics.empty(hidden.shape[1])
    found.add(hidden)
    return found


def squared_error(weight: Any, changed: Any, moments: Any) -> float:
    difference = np.asarray(weight, np.float64) - changed
    return float(np.trace(difference @ moments @ difference.T))


def check_rule(mask: Any, pattern: str, fraction: float) -> None:
    rows, columns = mask.shape
    assert (mask.sum(axis=1) == columns - round(columns * fraction)).all()
    if pattern == "2:4":
        assert all((row.reshape(-1, 4).sum(axis=1) == 2).all() for row in mask)
    if pattern == "block":
        for first in range(0, rows, 16):
            assert (mask[first : first + 16] == mask[first]).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_mask_keeps_the_highest_scores_that_its_rule_allows(pattern: Any) -> None:
    scores = np.random.default_rng(1).random((37, 24))  # a last panel of five rows
    fraction = 0.5 if pattern == "2:4" else 0.75
    mask = choose_mask(scores, pattern, fraction)
    check_rule(mask, pattern, fraction)
    if pattern == "unstructured":
        best = sum(np.sort(row)[-6:].sum() for row in scores)
    elif pattern == "2:4":
        best = sum(np.sort(group)[-2:].sum() for row in scores for group in row.reshape(-1, 4))
    else:
        panels = [scores[:16].sum(axis=0), scores[16:32].sum(axis=0), scores[32:].sum(axis=0)]
        best = sum(np.sort(panel)[-6:].sum() for panel in panels)
    assert scores[mask].sum() == pytest.approx(best)


def test_refit_finds_the_least_squares_solution_of_each_row() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((9, 30))
    moments = damped(statistics(inputs(400, 30)).gram, DAMPING)
    mask = rng.random(weight.shape) < 0.5
    mask[3] = False  # a row of which nothing is kept
    mask[4] = True  # and one of which all is
    found = refit_kept(weight, moments, mask)
    for row, keep, got in zip(weight, mask, found, strict=True):
        kept = np.flatnonzero(keep)
        solved = np.linalg.solve(moments[np.ix_(kept, kept)], (moments @ row)[kept])
        expected = np.zeros(30)
        expected[kept] = solved
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(row).max())
        assert not got[~keep].any()


def test_the_error_falls_with_every_step_of_the_refit() -> None:
    rng = np.random.default_rng(3)
    weight, moments = rng.standard_normal((5, 40)), damped(statistics(inputs(300, 40)).gram)
    mask = rng.random(weight.shape) < 0.4
    errors = [
        squared_error(weight, refit_kept(weight, moments, mask, steps=steps), moments)
        for steps in range(8)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_a_column_left_out_is_made_good_by_all_later_ones() -> None:
    """Leaving out the first column alone: the rest must be the least-squares solution."""
    weight = np.random.default_rng(4).standard_normal((6, 90))  # more than one block of columns
    moments = damped(statistics(inputs(500, 90)).gram)
    found = settle_columns(weight, moments, lambda j, column: column * (j != 0))
    rest = np.arange(1, 90)
    expected = np.linalg.solve(moments[np.ix_(rest, rest)], (weight @ moments)[:, rest].T).T
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-8)
    assert not found[:, 0].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_exchange_drops_the_least_and_grows_the_most(pattern: Any) -> None:
    rng = np.random.default_rng(5)
    mask = choose_mask(rng.random((32, 40)), pattern, 0.5)
    loss, gain = rng.random(mask.shape), rng.random(mask.shape)
    changed = exchange(mask, loss, gain, pattern, 0.1)
    check_rule(changed, pattern, 0.5)
    if pattern == "block":
        mask, changed = mask[::16], changed[::16]
        loss = loss.reshape(2, 16, 40).sum(axis=1)
        gain = gain.reshape(2, 16, 40).sum(axis=1)
    for before, after, lost, gained in zip(mask, changed, loss, gain, strict=True):
        out, new = np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)
        if pattern == "2:4":  # one of ten groups: where the difference is largest
            pairs = [
                (
                    gained[g : g + 4][~before[g : g + 4]].max()
                    - lost[g : g + 4][before[g : g + 4]].min()
                )
                for g in range(0, 40, 4)
            ]
            assert out.size == new.size == 1
            assert out[0] // 4 == new[0] // 4 == int(np.argmax(pairs))
        else:
            assert set(out) == set(np.flatnonzero(before)[np.argsort(lost[before])[:2]])
            assert set(new) == set(np.flatnonzero(~before)[np.argsort(-gained[~before])[:2]])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regrowing_lowers_the_error_and_never_raises_that_of_a_row(pattern: Any) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((32, 48))
    moments = damped(statistics(inputs(600, 48)).gram, DAMPING)
    start = choose_mask(np.square(weight), pattern, 0.5)
    first = refit_kept(weight, moments, start)
    found, mask = prune_and_regrow(weight, moments, start, pattern, rounds=8, fixed=48)
    check_rule(mask, pattern, 0.5)
    assert not found[~mask].any()
    size = 16 if pattern == "block" else 1
    for begin in range(0, 32, size):
        rows = slice(begin, begin + size)
        before = squared_error(weight[rows], first[rows], moments)
        assert squared_error(weight[rows], found[rows], moments) <= before * (1 + 1e-9)
    assert squared_error(weight, found, moments) < 0.95 * squared_error(weight, first, moments)


def test_regrowing_comes_near_the_best_mask_there_is() -> None:
    """Against all 924 masks of six among twelve; a mask by magnitude is far from the best."""
    weight = np.random.default_rng(7).standard_normal((8, 12))
    moments = damped(statistics(inputs(300, 12)).gram, DAMPING)
    best = np.full(8, np.inf)
    for kept in itertools.combinations(range(12), 6):
        solved = np.linalg.solve(moments[np.ix_(kept, kept)], (weight @ moments)[:, kept].T).T
        changed = np.zeros_like(weight)
        changed[:, kept] = solved
        difference = weight - changed
        best = np.minimum(best, np.einsum("ij,ij->i", difference @ moments, difference))
    start = choose_mask(np.square(weight), "unstructured", 0.5)
    found, _ = prune_and_regrow(weight, moments, start, "unstructured", rounds=8, fixed=12)
    first = squared_error(weight, refit_kept(weight, moments, start), moments)
    regrown = squared_error(weight, found, moments)
    assert regrown - best.sum() < 0.5 * (first - best.sum())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_method_has_less_error_than_the_simpler_one(pattern: Any) -> None:
    hidden = inputs(800, 64)
    rng = np.random.default_rng(8)
    weight, bias = rng.standard_normal((48, 64)), rng.standard_normal(48)

    def measured(**options: Any) -> float:
        done = sparsify_linear(
            weight, bias, statistics(hidden), SparsityOptions(pattern, **options)
        )
        check_rule(done.mask, pattern, 0.5)
        assert np.array_equal(done.weight != 0, done.mask)
        assert done.bias is not None
        outputs = hidden @ weight.T + bias
        wrong = hidden.astype(np.float64) @ done.weight.T + done.bias - outputs
        return float(np.square(wrong).sum())

    plain = measured(reconstruct="none")
    columns = measured(reconstruct="columns")
    solved = measured()
    assert plain > columns > solved > measured(regrow=6)
    assert measured(method="magnitude", reconstruct="none") > plain


def test_the_bias_takes_over_what_an_input_is_on_average() -> None:
    """An input that hardly varies can go: its mean belongs to the bias."""
    hidden = np.random.default_rng(9).standard_normal((500, 8)).astype(np.float32)
    hidden[:, 5] = 4.0 + 1e-3 * hidden[:, 5]
    weight = np.ones((16, 8))
    weight[:, 5] = 0.01  # of least activation: left out
    done = sparsify_linear(
        weight, np.zeros(16), statistics(hidden), SparsityOptions("block", 1 / 8, "magnitude")
    )
    assert done.bias is not None
    assert not done.weight[:, 5].any()
    # Least squares of one coefficient, 0.01 * 4 on 500 tokens, with the ridge's share beside them.
    ridge = DAMPING * (np.square(hidden.astype(np.float64)).sum() + 500) / 9
    np.testing.assert_allclose(done.bias, 0.04 * 500 / (500 + ridge), rtol=0.01)


def test_second_order_rounding_keeps_zeros_where_it_is_told() -> None:
    rng = np.random.default_rng(10)
    weight = rng.standard_normal((20, 32))
    keep = choose_mask(np.abs(weight), "2:4", 0.5)
    gram = statistics(inputs(400, 32)).gram
    assert quantize_matrix(weight * keep, gram=gram).values[~keep].any()
    found = quantize_matrix(weight * keep, gram=gram, keep=keep)
    assert not found.values[~keep].any()
    assert (np.abs(found.weight_q).max(axis=1) == 127).all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pattern": "4:8"}, "pattern must be one of"),
        ({"pattern": "2:4", "fraction": 0.6}, "sparsity must be 0.5"),
        ({"pattern": "block", "fraction": 1.0}, "below 1"),
        ({"pattern": "block", "fraction": float("nan")}, "above 0"),
        ({"pattern": "block", "method": "luck"}, "method must be"),
        ({"pattern": "block", "reconstruct": "all"}, "reconstruct must be"),
        ({"pattern": "block", "regrow": -1}, "regrow must be at least 0"),
        ({"pattern": "block", "regrow": 1, "reconstruct": "none"}, "least-squares"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        SparsityOptions(**options)


def test_2_4_needs_whole_groups() -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        choose_mask(np.ones((4, 10)), "2:4", 0.5)
