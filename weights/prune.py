"""Structured pruning from second moments: which heads and neurons go, and how the rest makes up.

A head is 3 * head_dim rows of the fused QKV matrix and head_dim columns of the attention's output
matrix; a neuron of the feed-forward layer is a row of one matrix and a column of the next. What is
cut is cut physically. The order of removal is that of the optimal brain surgeon (Hassibi and Stork,
1993): under the second moments G of the inputs of the output matrix W, leaving out the columns S
and refitting the others by least squares costs

    trace(W_S ([G^-1]_SS)^-1 W_S^T),

so no labels and no gradients are needed. How much each layer gives is decided elsewhere, from what
cutting it costs at the model's output and saves in time: `allocate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError
from minibert.weights.checkpoint import LayerWeights, LinearWeights

FloatArray = NDArray[Any]
IntArray = NDArray[np.int64]
DAMPING = 0.01
"""Ridge, as a share of the mean second moment of a feature."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of a layer's inputs with themselves and with what its outputs should be.

    Attributes:
        gram: (in_features + 1, in_features + 1); the last feature is a constant 1, for the bias.
        cross: (out_features, in_features + 1), sum of target x^T.
        target: sum of the targets' squares.
        num_tokens: rows that were summed.
    """

    gram: FloatArray
    cross: FloatArray
    target: float
    num_tokens: int

    @classmethod
    def empty(cls, in_features: int, out_features: int) -> Moments:
        """Moments of no token."""
        wide = in_features + 1
        return cls(np.zeros((wide, wide)), np.zeros((out_features, wide)), 0.0, 0)

    def plus(
        self,
        hidden: FloatArray,
        target: FloatArray,
        cu_seqlens: FloatArray | None = None,
        *,
        mean_weight: float = 0.0,
    ) -> Moments:
        """With these rows.

        Args:
            hidden: (num_rows, in_features).
            target: (num_rows, out_features).
            cu_seqlens: (num_seqs + 1,) bounds of the texts.
            mean_weight: how much more the error of a text's mean counts than that of a token: what
                a pooled embedding sees is the mean.
        """
        rows = np.empty((hidden.shape[0], hidden.shape[1] + 1), np.float32)
        rows[:, :-1] = hidden
        rows[:, -1] = 1.0
        if mean_weight > 0.0 and cu_seqlens is not None:
            # n |mean|^2 of n tokens is the mean's share of the sum of squares.
            scale = np.sqrt(mean_weight / np.diff(cu_seqlens))[:, None].astype(np.float32)
            means, wanted = (
                np.add.reduceat(values, cu_seqlens[:-1], axis=0) * scale
                for values in (rows, target)
            )
            rows, target = np.concatenate((rows, means)), np.concatenate((target, wanted))
        return Moments(
            self.gram + rows.T @ rows,
            self.cross + target.T @ rows,
            self.target + float(np.einsum("ij,ij->", target, target, dtype=np.float64)),
            self.num_tokens + hidden.shape[0],
        )

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of tokens."""
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.target + other.target,
            self.num_tokens + other.num_tokens,
        )

    def error(self, solution: FloatArray) -> float:
        """Mean squared error of a linear map (out_features, in_features + 1) on these tokens."""
        fitted = np.einsum("ij,ij->", solution @ self.gram, solution)
        total = self.target - 2.0 * np.einsum("ij,ij->", solution, self.cross) + fitted
        return float(max(total, 0.0) / max(self.num_tokens, 1))


def damped(gram: FloatArray, damping: float = DAMPING) -> FloatArray:
    """Second moments with a ridge of `damping` times their mean."""
    ridge = damping * max(float(np.trace(gram)) / len(gram), 1e-12)
    return np.asarray(gram, np.float64) + ridge * np.eye(len(gram))


def removal_order(
    weight: FloatArray, moments: FloatArray, *, group: int = 1, at_once: int = 1
) -> IntArray:
    """Groups of columns in the order in which they are best left out.

    Args:
        weight: (out_features, in_features).
        moments: (in_features, in_features), positive definite: `damped`.
        group: columns that go together (head_dim for heads, 1 for neurons).
        at_once: groups removed before the others are judged again; larger is faster.

    Returns:
        (in_features / group,) indices of groups, the least important first.
    """
    inverse = np.linalg.inv(moments)
    current = np.array(weight, np.float64)
    names = np.arange(weight.shape[1] // group)  # of the groups that the arrays still hold
    alive = np.ones(names.size, bool)
    order: list[int] = []
    while alive.any():
        if 4 * np.count_nonzero(alive) < 3 * names.size:
            stay = head_columns(np.flatnonzero(alive), group)
            current, inverse = current[:, stay], inverse[np.ix_(stay, stay)]
            names, alive = names[alive], alive[alive]
        costs = np.where(alive, _costs(current, inverse, group, alive), np.inf)
        chosen = np.argsort(costs, kind="stable")[: min(at_once, np.count_nonzero(alive))]
        order.extend(names[chosen].tolist())
        alive[chosen] = False
        gone = head_columns(chosen, group)
        block = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])
        current -= current[:, gone] @ block
        inverse -= inverse[:, gone] @ block
    return np.array(order, np.int64)


def _costs(
    weight: FloatArray, inverse: FloatArray, group: int, alive: NDArray[np.bool_] | None = None
) -> FloatArray:
    """Of each group alone; arbitrary for groups that are gone, whose part of `inverse` is 0."""
    if group == 1:
        diagonal = np.diagonal(inverse)
        safe = diagonal if alive is None else np.where(alive, diagonal, 1.0)
        cost: FloatArray = np.square(weight).sum(axis=0) / safe
        return cost
    costs = np.zeros(weight.shape[1] // group)
    for i in range(costs.size) if alive is None else np.flatnonzero(alive):
        own = slice(i * group, (i + 1) * group)
        part = weight[:, own]
        costs[i] = np.einsum("ij,ji->", part, np.linalg.solve(inverse[own, own], part.T))
    return costs


def head_importance(weight: FloatArray, moments: FloatArray, head_dim: int) -> FloatArray:
    """(num_heads,) squared output error of leaving out each head alone, the others refitted."""
    return _costs(np.asarray(weight, np.float64), np.linalg.inv(moments), head_dim)


def refit_columns(weight: FloatArray, moments: FloatArray, keep: IntArray) -> NDArray[np.float32]:
    """The kept columns, refitted to give what all columns gave.

    Least squares under `moments`, with nothing but the layer's own outputs as target: cutting in
    two steps gives the same as cutting at once.

    Args:
        weight: (out_features, in_features).
        moments: (in_features, in_features), positive definite.
        keep: indices of columns.

    Returns:
        (out_features, keep.size).
    """
    if keep.size == weight.shape[1]:
        return np.asarray(weight, np.float32)
    wanted = np.asarray(weight, np.float64) @ moments[:, keep]
    solved = np.linalg.solve(moments[np.ix_(keep, keep)], wanted.T).T
    return np.ascontiguousarray(solved, np.float32)


def refit_to_target(
    train: Moments, check: Moments, weight: FloatArray, bias: FloatArray
) -> LinearWeights:
    """Fit a linear layer to what its outputs should be, no further from its weights than pays.

    The ridge pulls towards the given weights; its strength is the one with the least error on
    `check`, tokens of other texts, so that few calibration texts change little.

    Args:
        train: moments to fit.
        check: moments to choose the strength by.
        weight: (out_features, in_features), where the ridge pulls to.
        bias: (out_features,).

    Returns:
        The fitted layer; the given one where no fit is better on `check`.
    """
    prior = np.concatenate((weight, bias[:, None]), axis=1).astype(np.float64)
    best, least, chosen = prior, check.error(prior), None
    mean = float(np.trace(train.gram)) / len(train.gram)
    for strength in (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003):
        solution = _ridge(train, prior, strength * mean)
        error = check.error(solution)
        if error < least:
            best, least, chosen = solution, error, strength
    if chosen is not None:  # with the strength settled, all tokens count
        best = _ridge(train + check, prior, chosen * mean)
    return LinearWeights(
        np.ascontiguousarray(best[:, :-1], np.float32), best[:, -1].astype(np.float32)
    )


def _ridge(moments: Moments, prior: FloatArray, ridge: float) -> FloatArray:
    left = moments.gram + ridge * np.eye(len(moments.gram))
    return np.asarray(np.linalg.solve(left, (moments.cross + ridge * prior).T).T)


# ---- cutting -----------------------------------------------------------------------------------
def prune_heads(layer: LayerWeights, keep_heads: Sequence[int]) -> LayerWeights:
    """Keep these heads; nothing else changes.

    Raises:
        InputError: no head, one that is not there, or one twice.
    """
    keep = _checked("keep_heads", keep_heads, layer.num_heads)
    if keep.size == layer.num_heads:
        return layer
    head_dim = layer.qkv.weight.shape[0] // (3 * layer.num_heads)
    columns = head_columns(keep, head_dim)
    rows = np.concatenate([columns + part * layer.num_heads * head_dim for part in range(3)])
    out = layer.attention_output
    return replace(
        layer,
        num_heads=int(keep.size),
        qkv=_rows(layer.qkv, rows),
        attention_output=replace(out, weight=np.ascontiguousarray(out.weight[:, columns])),
    )


def prune_feed_forward(layer: LayerWeights, keep_neurons: Sequence[int]) -> LayerWeights:
    """Keep these neurons of the feed-forward layer; nothing else changes.

    Raises:
        InputError: no neuron, one that is not there, or one twice.
    """
    width = layer.intermediate.weight.shape[0]
    keep = _checked("keep_neurons", keep_neurons, width)
    if keep.size == width:
        return layer
    return replace(
        layer,
        intermediate=_rows(layer.intermediate, keep),
        output=replace(layer.output, weight=np.ascontiguousarray(layer.output.weight[:, keep])),
    )


def head_columns(heads: IntArray, head_dim: int) -> IntArray:
    """Columns of the attention's output matrix that belong to these heads."""
    columns: IntArray = (heads[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
    return columns


def _rows(linear: LinearWeights, rows: IntArray) -> LinearWeights:
    bias = None if linear.bias is None else np.ascontiguousarray(linear.bias[rows])
    return replace(linear, weight=np.ascontiguousarray(linear.weight[rows]), bias=bias)


def _checked(name: str, keep: Sequence[int], count: int) -> IntArray:
    indices = np.array(sorted(keep), np.int64)
    bad = indices.size == 0 or indices[0] < 0 or indices[-1] >= count
    if bad or np.unique(indices).size != indices.size:
        raise InputError(
            f"{name} must be different numbers from 0 to {count - 1}, at least one, "
            f"got {list(keep)[:8]}"
        )
    return indices


# ---- who gives how much ------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Level:
    """One way to cut one part of a layer.

    Attributes:
        kept: heads or neurons that stay.
        cost: what remains, in the unit of the budget.
        harm: what cutting this part alone costs at the model's output, 1 - mean cosine.
    """

    kept: int
    cost: float
    harm: float


def allocate(
    parts: Mapping[str, Sequence[Level]], budget: float, *, resolution: int = 4000
) -> dict[str, Level]:
    """Choose a level for every part so that the costs fit the budget and the harm is least.

    Harms are added, as small independent errors do in 1 - cosine. Dynamic programming over costs
    rounded up to a fraction of the budget: the budget is never passed, and used up to a part in
    `resolution` for each part.

    Args:
        parts: name -> levels to choose from.
        budget: most that all costs together may be.
        resolution: steps of the budget.

    Raises:
        InputError: not even the cheapest levels fit.
    """
    cheapest = sum(min(level.cost for level in levels) for levels in parts.values())
    if cheapest > budget:
        raise InputError(f"the target must allow a cost of {cheapest:.6g}, got {budget:.6g}")
    unit = budget / resolution
    best = np.zeros(resolution + 1)  # least harm within a budget of so many units
    chosen: list[IntArray] = []
    for levels in parts.values():
        candidates = np.full((len(levels), resolution + 1), np.inf)
        for k, level in enumerate(levels):
            units = int(np.ceil(level.cost / unit - 1e-9))
            if units <= resolution:
                candidates[k, units:] = best[: resolution + 1 - units] + level.harm
        pick = candidates.argmin(axis=0)
        chosen.append(pick)
        best = np.take_along_axis(candidates, pick[None, :], axis=0)[0]
    result: dict[str, Level] = {}
    left = resolution
    if not np.isfinite(best[left]):  # rounding up cost what little room there was
        return {name: min(levels, key=lambda x: x.cost) for name, levels in parts.items()}
    for (name, levels), pick in reversed(list(zip(parts.items(), chosen, strict=True))):
        level = levels[int(pick[left])]
        result[name] = level
        left -= int(np.ceil(level.cost / unit - 1e-9))
    return {name: result[name] for name in parts}


def interpolate(kept: Sequence[int], measured: Mapping[int, float]) -> list[float]:
    """Values between measured ones, linear in `kept`.

    Args:
        kept: where values are wanted, within the measured range.
        measured: kept -> value.
    """
    points = sorted(measured)
    return [float(v) for v in np.interp(kept, points, [measured[point] for point in points])]
