"""Which texts run together: batches that keep every stream busy to the end.

Streams take batches from one queue. Equal batches would leave streams idle whenever their number is
not a multiple of the streams', and a stream that another process slows down would be waited for.
Batches therefore shrink towards the end (guided self-scheduling, Polychronopoulos and Kuck, 1987,
IEEE Transactions on Computers C-36): each takes a share of what is left. Results do not depend on
the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError

_FEWEST_TOKENS_TO_SPLIT = 64  # below this per stream, one batch over all cores is quicker
_FEWEST_TOKENS = 96  # a batch this small costs as little per token as a large one
_SMALLEST_SHARE = 5  # no batch is smaller than a fifth of the budget: devices differ in theirs
_TEAM_EFFICIENCY = 0.85  # what all cores reach on one batch of some hundred tokens (docs/cpu.md)


def plan_batches(
    seqlens: Sequence[int] | NDArray[Any],
    *,
    max_batch_tokens: int,
    batch_size: int | None = None,
    num_streams: int = 1,
) -> list[NDArray[np.int32]]:
    """Group texts into batches of at most `max_batch_tokens` tokens, longest first.

    Texts of like length stand together; the sort is stable, so equal texts keep their order. A text
    longer than the budget gets a batch of its own.

    Args:
        seqlens: (num_seqs,) tokens of each text.
        max_batch_tokens: budget of one batch, at least 1.
        batch_size: most texts in one batch; no cap when None.
        num_streams: batches that run at once. With one, every batch is filled; with several, one
            batch is planned where all streams together are quicker at it than each at a part.

    Returns:
        One int32 array of text indices per batch; together a permutation of all texts.

    Raises:
        InputError: a budget, a cap or a number of streams below 1.
    """
    for name, value in (
        ("max_batch_tokens", max_batch_tokens),
        ("batch_size", 1 if batch_size is None else batch_size),
        ("num_streams", num_streams),
    ):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    unordered = np.asarray(seqlens, np.int64)
    if unordered.size == 1:  # the usual request needs no order
        return [np.zeros(1, np.int32)]
    order = np.argsort(-unordered, kind="stable").astype(np.int32)
    ordered: list[int] = unordered[order].tolist()
    total = sum(ordered)
    fewest = _fewest_tokens(total, max_batch_tokens, num_streams)
    batches = _cut(order, ordered, max_batch_tokens, fewest, batch_size, num_streams)
    if total <= max_batch_tokens and 1 < len(batches) and len(order) <= (batch_size or len(order)):
        largest = max(int(unordered[batch].sum()) for batch in batches)
        if total < _TEAM_EFFICIENCY * num_streams * largest:
            return [order]
    return batches


def _fewest_tokens(total: int, max_batch_tokens: int, num_streams: int) -> int:
    """The size below which a batch is not cut smaller."""
    share = -(-total // num_streams)
    if num_streams == 1 or (share < _FEWEST_TOKENS_TO_SPLIT and total <= max_batch_tokens):
        return max_batch_tokens
    fewest = max(_FEWEST_TOKENS, max_batch_tokens // _SMALLEST_SHARE)
    return min(fewest, max(_FEWEST_TOKENS_TO_SPLIT, share), max_batch_tokens)


def _cut(
    order: NDArray[np.int32],
    seqlens: list[int],
    max_batch_tokens: int,
    fewest: int,
    batch_size: int | None,
    num_streams: int,
) -> list[NDArray[np.int32]]:
    batches: list[NDArray[np.int32]] = []
    left = sum(seqlens)
    begin = tokens = limit = 0
    for i, seqlen in enumerate(seqlens):
        if i == begin or tokens + seqlen > limit or i - begin == batch_size:
            if i > begin:
                batches.append(order[begin:i])
            begin, tokens = i, 0
            # Half of an even share: the other half makes up for streams that run late.
            limit = min(max_batch_tokens, max(fewest, -(-left // (2 * num_streams))))
        tokens += seqlen
        left -= seqlen
    if begin < order.size:
        batches.append(order[begin:])
    return batches
