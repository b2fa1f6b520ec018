"""How many tokens may run at once, so that scratch memory stays within a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minibert.errors import MemoryLimitError


class Budget(NamedTuple):
    """Limits of the batches that run at once on one device.

    Attributes:
        max_batch_tokens: of one batch.
        num_streams: batches that run at once.
        num_scratch: scratch memories that may exist at once: one each, and those of idle streams.
        memory_limit: bytes of one scratch memory; None for no limit.
    """

    max_batch_tokens: int
    num_streams: int
    num_scratch: int
    memory_limit: int | None


def make_budget(
    scratch_bytes: Callable[[int, int, int], int],
    *,
    max_batch_tokens: int,
    max_length: int,
    num_streams: int,
    num_idle_streams: int = 0,
    memory_limit: int | None,
) -> Budget:
    """Choose how many tokens may run at once so that scratch memory stays within a limit.

    Args:
        scratch_bytes: num_tokens, max_seqlen, num_seqs -> bytes of one stream.
        max_batch_tokens: wanted budget of one batch.
        max_length: most tokens of one text.
        num_streams: batches that run at once.
        num_idle_streams: that keep scratch memory beside those.
        memory_limit: bytes that all scratch memory may take together; None for no limit.

    Raises:
        MemoryLimitError: not even a batch of one token fits.
    """
    if memory_limit is None:
        return Budget(max_batch_tokens, num_streams, num_streams + num_idle_streams, None)

    def fits(num_tokens: int) -> bool:
        # As many texts as tokens is the most that the bound can see.
        return scratch_bytes(num_tokens, min(num_tokens, max_length), num_tokens) <= share

    for streams in range(num_streams, 0, -1):
        share = memory_limit // (streams + num_idle_streams)
        if not fits(max_length) and streams > 1:
            continue  # fewer streams, so that long texts keep their place
        if not fits(1):
            break
        low, high = 1, max_batch_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return Budget(low, streams, streams + num_idle_streams, share)
    needed = scratch_bytes(1, 1, 1) * (1 + num_idle_streams)
    raise MemoryLimitError(
        f"memory_limit must be at least {needed} bytes for one token, got {memory_limit}"
    )
