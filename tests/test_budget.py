"""How many tokens may run at once, so that scratch memory stays within a limit."""

from __future__ import annotations

import pytest

from minibert.budget import Budget, make_budget
from minibert.errors import MemoryLimitError


def test_a_budget_keeps_all_streams_within_the_limit() -> None:
    def scratch(num_tokens: int, max_seqlen: int, num_seqs: int) -> int:
        return 1000 * num_tokens + 4 * max_seqlen**2

    for limit in (200_000, 1_000_000, 10_000_000):
        budget = make_budget(
            scratch, max_batch_tokens=4096, max_length=128, num_streams=4, memory_limit=limit
        )
        longest = min(budget.max_batch_tokens, 128)
        needed = budget.num_streams * scratch(budget.max_batch_tokens, longest, 1)
        assert needed <= limit
        assert budget.max_batch_tokens >= 100


def test_fewer_batches_run_at_once_where_a_long_text_needs_the_memory() -> None:
    budget = make_budget(
        lambda num_tokens, max_seqlen, num_seqs: num_tokens,
        max_batch_tokens=16,
        max_length=100,
        num_streams=4,
        memory_limit=200,
    )
    assert budget == Budget(16, 2, 2, 100)


def test_idle_streams_keep_their_share() -> None:
    def scratch(num_tokens: int, max_seqlen: int, num_seqs: int) -> int:
        return num_tokens

    budget = make_budget(
        scratch,
        max_batch_tokens=1000,
        max_length=10,
        num_streams=2,
        num_idle_streams=1,
        memory_limit=300,
    )
    assert budget == Budget(100, 2, 3, 100)
    with pytest.raises(MemoryLimitError, match="must be at least 2 bytes for one token, got 1"):
        make_budget(
            scratch,
            max_batch_tokens=1000,
            max_length=10,
            num_streams=2,
            num_idle_streams=1,
            memory_limit=1,
        )
