"""Packed batches.

A batch holds the tokens of its texts one after the other, with no padding; `cu_seqlens` says where
each text begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError

IntArray = NDArray[np.int32]
_INT32 = np.dtype(np.int32)
_NAMES = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "skip")


@dataclass(frozen=True, slots=True)
class Batch:
    """Several texts, packed.

    Attributes:
        input_ids: (num_tokens,) int32.
        token_type_ids: (num_tokens,) int32.
        position_ids: (num_tokens,) int32, counted from the family's first position.
        cu_seqlens: (num_seqs + 1,) int32, from 0 to num_tokens; text i is
            `cu_seqlens[i]:cu_seqlens[i + 1]`.
        skip: (num_seqs,) int32, tokens at the start of each text that pooling leaves out
            (a prompt under `include_prompt=False`).
    """

    input_ids: IntArray
    token_type_ids: IntArray
    position_ids: IntArray
    cu_seqlens: IntArray
    skip: IntArray

    def __post_init__(self) -> None:
        """Check that the arrays fit together.

        Raises:
            InputError: naming the array and the rule that it breaks.
        """
        cu_seqlens = self.cu_seqlens
        arrays = (self.input_ids, self.token_type_ids, self.position_ids, cu_seqlens, self.skip)
        for name, array in zip(_NAMES, arrays, strict=True):
            if array.dtype != _INT32 or array.ndim != 1:
                raise InputError(
                    f"{name} must be one-dimensional int32, got {array.ndim}-D {array.dtype}"
                )
        num_tokens = self.input_ids.size
        for name, array in zip(_NAMES[1:3], arrays[1:3], strict=True):
            if array.size != num_tokens:
                raise InputError(
                    f"{name} must have num_tokens = {num_tokens} entries, got {array.size}"
                )
        if cu_seqlens.size < 1 or cu_seqlens[0] != 0:
            raise InputError("cu_seqlens must start at 0")
        if cu_seqlens[-1] != num_tokens:
            raise InputError(
                f"cu_seqlens must end at num_tokens = {num_tokens}, got {cu_seqlens[-1]}"
            )
        if np.count_nonzero(cu_seqlens[1:] > cu_seqlens[:-1]) < cu_seqlens.size - 1:
            raise InputError("cu_seqlens must increase: every sequence has at least one token")
        if self.skip.size != cu_seqlens.size - 1:
            raise InputError(f"skip must have num_seqs = {self.num_seqs} entries")

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts together."""
        return int(self.input_ids.size)

    @property
    def num_seqs(self) -> int:
        """Texts in the batch."""
        return int(self.cu_seqlens.size - 1)

    @property
    def seqlens(self) -> IntArray:
        """Tokens of each text, (num_seqs,) int32."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest text, 0 for an empty batch."""
        return int(self.seqlens.max(initial=0))


def pack(
    sequences: Sequence[IntArray],
    *,
    token_type_ids: Sequence[IntArray] | None = None,
    first_position: int = 0,
    pad_token_id: int | None = None,
    skip: Sequence[int] | None = None,
) -> Batch:
    """Pack token ids of several texts into one batch.

    Args:
        sequences: num_seqs arrays of int32 token ids, none empty.
        token_type_ids: as many arrays of the same sizes; all 0 when not given.
        first_position: position of a text's first token (`pad_token_id + 1` in RoBERTa).
        pad_token_id: where given, a token of this id inside a text takes the position
            `first_position - 1` and is not counted, as RoBERTa's position ids are defined.
        skip: tokens that pooling leaves out at the start of each text; 0 when not given.

    Returns:
        A `Batch` in the order given.

    Raises:
        InputError: a text without tokens, or arrays that do not fit together.
    """
    cu_seqlens = np.array([0, *itertools.accumulate(map(len, sequences))], np.int32)
    num_tokens = int(cu_seqlens[-1])
    input_ids = _joined(sequences)
    return Batch(
        input_ids=input_ids,
        token_type_ids=np.zeros(num_tokens, np.int32)
        if token_type_ids is None
        else _joined(token_type_ids),
        position_ids=_positions(input_ids, cu_seqlens, first_position, pad_token_id),
        cu_seqlens=cu_seqlens,
        skip=np.zeros(len(sequences), np.int32) if skip is None else np.asarray(skip, np.int32),
    )


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    if len(arrays) == 1 and arrays[0].dtype == np.int32:
        return np.ascontiguousarray(arrays[0])
    return np.concatenate([np.empty(0, np.int32), *arrays]).astype(np.int32, copy=False)


def _positions(
    input_ids: IntArray, cu_seqlens: IntArray, first_position: int, pad_token_id: int | None
) -> IntArray:
    if pad_token_id is None and cu_seqlens.size == 2:
        return np.arange(first_position, first_position + input_ids.size, dtype=np.int32)
    seqlens = np.diff(cu_seqlens)
    if pad_token_id is None or not np.any(input_ids == pad_token_id):
        positions = np.arange(input_ids.size, dtype=np.int32)
        return np.asarray(
            positions - np.repeat(cu_seqlens[:-1], seqlens) + first_position, np.int32
        )
    counted = input_ids != pad_token_id
    before = np.concatenate([[0], np.cumsum(counted)])  # counted tokens up to each place
    within = before[1:] - np.repeat(before[cu_seqlens[:-1]], seqlens)
    return np.asarray(first_position - 1 + within * counted, np.int32)
