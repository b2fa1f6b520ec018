from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.errors import InputError
from minibert.plan import plan_batches

LENGTHS = st.lists(st.integers(1, 200), max_size=120)
STREAMS = st.integers(1, 6)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 400), st.one_of(st.none(), st.integers(1, 40)), STREAMS)
def test_a_plan_is_a_permutation_within_its_budget(
    seqlens: list[int], budget: int, batch_size: int | None, num_streams: int
) -> None:
    batches = plan_batches(
        seqlens, max_batch_tokens=budget, batch_size=batch_size, num_streams=num_streams
    )
    order = [int(i) for batch in batches for i in batch]
    assert sorted(order) == list(range(len(seqlens)))
    for batch in batches:
        assert batch.dtype == np.int32
        assert batch.size >= 1
        assert batch_size is None or batch.size <= batch_size
        tokens = sum(seqlens[i] for i in batch)
        assert tokens <= budget or batch.size == 1  # a long text stands alone


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 400), STREAMS)
def test_a_plan_is_sorted_and_stable(seqlens: list[int], budget: int, num_streams: int) -> None:
    batches = plan_batches(seqlens, max_batch_tokens=budget, num_streams=num_streams)
    order = [int(i) for batch in batches for i in batch]
    assert order == sorted(range(len(seqlens)), key=lambda i: -seqlens[i])


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 400), st.one_of(st.none(), st.integers(1, 40)))
def test_with_one_stream_no_two_neighbouring_batches_could_be_one(
    seqlens: list[int], budget: int, batch_size: int | None
) -> None:
    batches = plan_batches(seqlens, max_batch_tokens=budget, batch_size=batch_size)
    for left, right in pairwise(batches):
        fits = sum(seqlens[i] for i in left) + seqlens[right[0]] <= budget
        assert not fits or left.size == batch_size


def test_a_plan_of_nothing_is_empty() -> None:
    assert plan_batches([], max_batch_tokens=8) == []


def test_huge_lengths_do_not_overflow() -> None:
    batches = plan_batches([2**31 - 1, 2**31 - 1, 5], max_batch_tokens=2**32)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2]]


@pytest.mark.parametrize("options", [{"max_batch_tokens": 0}, {"max_batch_tokens": -5}])
def test_a_budget_below_one_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="max_batch_tokens must be at least 1"):
        plan_batches([1], **options)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        plan_batches([1], max_batch_tokens=8, batch_size=0)


def test_no_streams_are_refused() -> None:
    with pytest.raises(InputError, match="num_streams must be at least 1, got 0"):
        plan_batches([1], max_batch_tokens=8, num_streams=0)


def finish_time(tokens: list[int], speeds: list[float]) -> float:
    """When the last stream is done, if each takes the next batch as soon as it is free."""
    free = [(0.0, stream) for stream in range(len(speeds))]
    for batch in tokens:
        time, stream = heapq.heappop(free)
        heapq.heappush(free, (time + batch / speeds[stream], stream))
    return max(time for time, _ in free)


@settings(deadline=None)
@given(st.lists(st.integers(3, 200), min_size=1, max_size=400), st.integers(2, 16))
def test_streams_end_within_one_small_batch_of_each_other(
    seqlens: list[int], num_streams: int
) -> None:
    batches = plan_batches(seqlens, max_batch_tokens=512, num_streams=num_streams)
    tokens = [sum(seqlens[i] for i in batch) for batch in batches]
    if len(batches) > 1:
        even = sum(tokens) / num_streams
        assert finish_time(tokens, [1.0] * num_streams) <= even + max(103, max(seqlens))


def test_a_slow_stream_is_not_waited_for() -> None:
    """One of four streams at half speed: 3.5 streams' worth, and nearly all of it is used."""
    seqlens = [20] * 600
    speeds = [1.0, 1.0, 1.0, 0.5]
    batches = plan_batches(seqlens, max_batch_tokens=512, num_streams=4)
    tokens = [20 * batch.size for batch in batches]
    ideal = sum(tokens) / sum(speeds)
    assert finish_time(tokens, speeds) <= 1.05 * ideal


@pytest.mark.parametrize(
    ("seqlens", "num_batches"),
    [
        ([19], 1),  # one text: all cores
        ([12] * 8, 1),  # 48 tokens for each core are too few
        ([100, 100], 2),  # an even split
        ([200, 30], 1),  # the second core would wait for the first
        ([200, 190], 2),
        ([500, 100], 2),  # more than the budget: never one batch
    ],
)
def test_few_tokens_run_on_all_cores_where_that_is_quicker(
    seqlens: list[int], num_batches: int
) -> None:
    assert len(plan_batches(seqlens, max_batch_tokens=512, num_streams=2)) == num_batches


def test_a_cap_on_texts_holds_where_one_batch_would_be_quicker() -> None:
    batches = plan_batches([200, 30], max_batch_tokens=512, batch_size=1, num_streams=2)
    assert [batch.tolist() for batch in batches] == [[0], [1]]
