from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minibert.ops.activations import activate
from minibert.weights.checkpoint import LinearWeights
from minibert.weights.layer_fit import MEAN_WEIGHT, Block, fit_feed_forward, fit_linear

_erf = np.frompyfunc(math.erf, 1, 1)


def blocks(
    inputs: Any, target: Any, *, count: int = 10, tokens: int = 60, texts: int = 6, seed: int = 0
) -> list[Block]:
    """`count` blocks of `texts` texts, made by `inputs(rng, rows)` and `target(hidden)`."""
    rng = np.random.default_rng(seed)
    bounds = np.linspace(0, tokens, texts + 1).astype(np.int32)
    made = []
    for _ in range(count):
        hidden = inputs(rng, tokens).astype(np.float32)
        made.append(Block(hidden, target(hidden).astype(np.float32), bounds))
    return made


def linear(rng: Any, out_features: int, in_features: int, size: float = 1.0) -> LinearWeights:
    weight = size * rng.standard_normal((out_features, in_features)) / np.sqrt(in_features)
    return LinearWeights(weight.astype(np.float32), rng.standard_normal(out_features, np.float32))


def apply(layer: LinearWeights, hidden: Any) -> Any:
    assert layer.bias is not None
    return hidden.astype(np.float64) @ layer.weight.T.astype(np.float64) + layer.bias


def feed_forward(first: LinearWeights, second: LinearWeights, hidden: Any) -> Any:
    """Float64, by the definition of gelu."""
    z = apply(first, hidden)
    wide = z * 0.5 * (1.0 + _erf(z / np.sqrt(2.0)).astype(np.float64))
    assert second.bias is not None
    return wide @ second.weight.T.astype(np.float64) + second.bias


def error(first: LinearWeights, second: LinearWeights, given: list[Block]) -> float:
    missing = [b.target - feed_forward(first, second, b.hidden) for b in given]
    return float(np.mean([np.square(m).sum(axis=1).mean() for m in missing]))


def test_a_linear_fit_solves_the_weighted_least_squares_problem() -> None:
    """With much text the ridge is small: compare with NumPy's own solver in float64."""
    rng = np.random.default_rng(0)
    true, start = linear(rng, 5, 8), linear(rng, 5, 8)
    given = blocks(
        lambda rng, rows: rng.standard_normal((rows, 8)),
        lambda hidden: apply(true, hidden) + 0.1 * np.sin(3 * hidden[:, :5]),
    )
    found = fit_linear(given, start)
    rows, wanted = [], []
    for block in given:
        ones = np.concatenate((block.hidden, np.ones((len(block.hidden), 1))), axis=1)
        rows.append(ones)
        wanted.append(block.target)
        for begin, end in zip(block.cu_seqlens[:-1], block.cu_seqlens[1:], strict=True):
            share = np.sqrt(MEAN_WEIGHT * (end - begin))
            rows.append(share * ones[begin:end].mean(axis=0, keepdims=True))
            wanted.append(share * block.target[begin:end].mean(axis=0, keepdims=True))
    solved = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T
    # The least ridge on offer, 0.001 of a mean moment, moves the solution by about as much.
    np.testing.assert_allclose(found.weight, solved[:, :-1], atol=5e-3)
    assert found.bias is not None
    np.testing.assert_allclose(found.bias, solved[:, -1], atol=5e-3)


def test_steps_find_a_first_matrix_that_was_disturbed() -> None:
    rng = np.random.default_rng(1)
    first, second = linear(rng, 12, 10, 1.5), linear(rng, 10, 12)
    disturbed = LinearWeights(first.weight + 0.2 * linear(rng, 12, 10).weight, first.bias)

    def inputs(rng: Any, rows: int) -> Any:
        return rng.standard_normal((rows, 10))

    def target(hidden: Any) -> Any:
        return feed_forward(first, second, hidden)

    given, held = blocks(inputs, target, count=30), blocks(inputs, target, seed=9)
    fits = [
        fit_feed_forward(
            given, disturbed, second, lambda values: activate(values, "gelu"), steps=steps
        )
        for steps in (0, 1, 6)
    ]
    errors = [error(*fit, held) for fit in fits]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.2 * errors[0]
    assert np.array_equal(fits[0][0].weight, disturbed.weight)


def test_a_narrower_layer_is_nearer_with_steps_than_without() -> None:
    rng = np.random.default_rng(2)
    first, second = linear(rng, 40, 12, 1.5), linear(rng, 12, 40)
    narrow = LinearWeights(first.weight[:24], first.bias[:24] if first.bias is not None else None)
    cut = LinearWeights(second.weight[:, :24], second.bias)

    def inputs(rng: Any, rows: int) -> Any:
        return rng.standard_normal((rows, 12))

    def target(hidden: Any) -> Any:
        return feed_forward(first, second, hidden)

    given, held = blocks(inputs, target, count=60), blocks(inputs, target, seed=9)
    errors = [
        error(
            *fit_feed_forward(
                given, narrow, cut, lambda values: activate(values, "gelu"), steps=steps
            ),
            held,
        )
        for steps in (0, 4)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("count", [1, 10])
def test_a_fit_that_does_not_help_held_out_texts_changes_nothing(count: int) -> None:
    """One block has nothing to check on; in ten, the checking ones contradict the others."""
    rng = np.random.default_rng(3)
    first, second = linear(rng, 12, 10), linear(rng, 10, 12)
    given = blocks(
        lambda rng, rows: rng.standard_normal((rows, 10)),
        lambda hidden: feed_forward(first, second, hidden),
        count=count,
    )
    noise = np.random.default_rng(4)
    for i, block in enumerate(given):
        if i % 5 != 4:
            block.target[:] += 50 * noise.standard_normal(block.target.shape, np.float32)
    same = fit_feed_forward(given, first, second, lambda values: activate(values, "gelu"), steps=3)
    assert np.array_equal(same[0].weight, first.weight)
    assert np.array_equal(same[1].weight, second.weight)
    alone = LinearWeights(second.weight[:, :10].copy(), second.bias)
    assert np.array_equal(fit_linear(given, alone).weight, alone.weight)
