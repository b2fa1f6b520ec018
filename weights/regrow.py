"""Refit what a mask keeps, and search a better mask: prune and regrow, without training.

With W the original weights of a layer and G the second moments of its inputs, weights V that are
zero outside a mask miss the outputs by trace((W - V) G (W - V)^T). For a given mask the best V is
a least-squares solution, row by row. Sparse momentum (Dettmers and Zettlemoyer, 2019, arXiv
1907.04840) alternates between dropping the weakest weights and growing those whose gradient is
largest; there gradients come from training, here from the formula: 2 (V - W) G. A round drops the
share of kept weights that do least, v^2 G_jj, grows as many where growing one weight alone gains
most, gradient^2 / (4 G_jj), and refits. Each row (each panel of the block pattern) goes on from
the best mask that it had so far, so no round makes it worse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.weights.masks import BLOCK_ROWS, GROUP, Mask, Pattern, panel_sums, spread_panels

FloatArray = NDArray[Any]
_SHARE = 0.2  # of the kept weights that the first round exchanges; a cosine to 0 for later ones
_STEPS = 30  # of conjugate gradients; beyond, errors change in the fourth digit
_ROUND_STEPS = 10  # within a round, which starts from the solution before it


def refit_kept(
    weight: FloatArray,
    moments: FloatArray,
    mask: Mask,
    *,
    start: FloatArray | None = None,
    steps: int = _STEPS,
) -> FloatArray:
    """The kept weights with the least error, by conjugate gradients on all rows at once.

    A product with `moments` serves every row, where solving exactly would factor a matrix for each
    row. The error falls with every step, so it is never above that of `start`. What is missing at
    the start is found in float64; the steps towards it, most of the work, are float32.

    Args:
        weight: (out_features, in_features), whose outputs are to be given.
        moments: (in_features, in_features), positive definite.
        mask: (out_features, in_features), what is kept.
        start: where to begin; the kept weights as they are when None.
        steps: at most; it ends where nothing is left to gain.

    Returns:
        (out_features, in_features) float64, zero outside the mask.
    """
    solution = np.where(mask, weight if start is None else start, 0.0).astype(np.float64)
    places = mask.astype(np.float32)
    missing = ((weight - solution) @ moments) * mask
    unit = max(float(np.abs(missing).max(initial=0.0)), 1e-300)  # far from where float32 ends
    residual = (missing / unit).astype(np.float32)
    size = float(np.trace(moments)) / len(moments)
    moments = (moments / size).astype(np.float32)
    correction = np.zeros_like(residual)
    inverse_diagonal = 1.0 / np.diagonal(moments)
    scaled = residual * inverse_diagonal
    direction = scaled.copy()
    power = np.einsum("ij,ij->i", residual, scaled)
    finished = np.maximum(1e-12 * power, 1e-30)
    for _ in range(steps):
        going = power > finished
        if not going.any():
            break
        image = direction @ moments
        image *= places
        curvature = np.einsum("ij,ij->i", direction, image)
        length = np.divide(power, curvature, out=np.zeros_like(power), where=going)
        correction += length[:, None] * direction
        residual -= length[:, None] * image
        scaled = residual * inverse_diagonal
        renewed = np.einsum("ij,ij->i", residual, scaled)
        turn = np.divide(renewed, power, out=np.zeros_like(power), where=going)
        direction = scaled + turn[:, None] * direction
        power = renewed
    return solution + correction.astype(np.float64) * (unit / size)


def prune_and_regrow(
    weight: FloatArray,
    moments: FloatArray,
    mask: Mask,
    pattern: Pattern,
    *,
    rounds: int,
    fixed: int,
) -> tuple[FloatArray, Mask]:
    """Search a mask of the same pattern and the same counts with less error.

    Args:
        weight: (out_features, in_features), whose outputs are to be given.
        moments: (in_features, in_features), positive definite.
        mask: (out_features, in_features) to start from.
        pattern: that the mask has, and keeps.
        rounds: how often to exchange weights.
        fixed: columns from this one on are kept as the mask says (the bias).

    Returns:
        The refitted weights, zero outside the mask, and the mask.
    """
    best_mask = mask.copy()
    best = refit_kept(weight, moments, mask)
    least = _group_errors(weight - best, moments, pattern)
    diagonal = np.diagonal(moments)[:fixed]
    for number in range(rounds):
        share = _SHARE * 0.5 * (1.0 + np.cos(np.pi * number / rounds))
        gradient = ((weight - best) @ moments)[:, :fixed]
        loss = np.square(best[:, :fixed]) * diagonal
        gain = np.square(gradient) / diagonal
        mask = best_mask.copy()
        mask[:, :fixed] = exchange(mask[:, :fixed], loss, gain, pattern, share)
        tried = refit_kept(weight, moments, mask, start=best, steps=_ROUND_STEPS)
        errors = _group_errors(weight - tried, moments, pattern)
        better = errors < least
        least = np.where(better, errors, least)
        best[better], best_mask[better] = tried[better], mask[better]
    return refit_kept(weight, moments, best_mask, start=best), best_mask


def exchange(
    mask: Mask, loss: FloatArray, gain: FloatArray, pattern: Pattern, share: float
) -> Mask:
    """Drop the kept weights of least loss, and grow as many of the others of greatest gain.

    Args:
        mask: (out_features, in_features), of this pattern.
        loss: what dropping each kept weight costs.
        gain: what growing each other weight gains.
        pattern: whose rule the result keeps, too.
        share: of the kept weights that are exchanged; at least one of each row.
    """
    rows = len(mask)
    if pattern == "2:4":
        return _exchange_in_groups(mask, loss, gain, share)
    if pattern == "block":
        mask, loss, gain = mask[::BLOCK_ROWS], panel_sums(loss), panel_sums(gain)
    kept = int(mask[0].sum())
    count = min(max(1, int(share * kept)), kept, mask.shape[1] - kept)
    changed = mask.copy()
    if count:
        drop = np.argsort(np.where(mask, loss, np.inf), axis=1, kind="stable")[:, :count]
        grow = np.argsort(np.where(mask, np.inf, -gain), axis=1, kind="stable")[:, :count]
        np.put_along_axis(changed, drop, False, axis=1)
        np.put_along_axis(changed, grow, True, axis=1)
    return spread_panels(changed, rows) if pattern == "block" else changed


def _exchange_in_groups(mask: Mask, loss: FloatArray, gain: FloatArray, share: float) -> Mask:
    """In the groups where it pays most, the weaker of the kept for the better of the others."""
    rows, columns = mask.shape
    shape = rows, columns // GROUP, GROUP
    kept = mask.reshape(shape)
    losses = np.where(kept, loss.reshape(shape), np.inf)
    gains = np.where(kept, -np.inf, gain.reshape(shape))
    drop, grow = losses.argmin(axis=2), gains.argmax(axis=2)
    pays = gains.max(axis=2) - losses.min(axis=2)
    count = max(1, int(share * pays.shape[1]))
    groups = np.argsort(-pays, axis=1, kind="stable")[:, :count]
    changed = mask.copy()
    for chosen, value in ((drop, False), (grow, True)):
        places = groups * GROUP + np.take_along_axis(chosen, groups, axis=1)
        np.put_along_axis(changed, places, value, axis=1)
    return changed


def _group_errors(difference: FloatArray, moments: FloatArray, pattern: Pattern) -> FloatArray:
    """(out_features,) squared error of what shares a mask: each row, or each panel."""
    errors = np.einsum("ij,ij->i", difference @ moments, difference)[:, None]
    if pattern == "block":
        errors = spread_panels(panel_sums(errors), len(errors))
    return np.asarray(errors[:, 0])
