from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.batch import Batch, pack
from minibert.errors import InputError


def sequence(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=12), max_size=12))
def test_packing_and_cutting_gives_the_texts_back(texts: list[list[int]]) -> None:
    batch = pack([sequence(*ids) for ids in texts])
    assert batch.num_seqs == len(texts)
    assert batch.num_tokens == sum(map(len, texts))
    assert batch.seqlens.tolist() == [len(ids) for ids in texts]
    assert batch.max_seqlen == max(map(len, texts), default=0)
    for i, ids in enumerate(texts):
        begin, end = batch.cu_seqlens[i : i + 2]
        assert batch.input_ids[begin:end].tolist() == ids
        assert batch.position_ids[begin:end].tolist() == list(range(len(ids)))
    assert not batch.token_type_ids.any()
    assert not batch.skip.any()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_positions_are_those_of_transformers_also_around_pads_inside_a_text(
    texts: list[list[int]], pad_token_id: int
) -> None:
    import torch
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    batch = pack(
        [sequence(*ids) for ids in texts],
        first_position=pad_token_id + 1,
        pad_token_id=pad_token_id,
    )
    for i, ids in enumerate(texts):
        begin, end = batch.cu_seqlens[i : i + 2]
        theirs = RobertaEmbeddings.create_position_ids_from_input_ids(
            torch.tensor([ids]), pad_token_id
        )
        assert batch.position_ids[begin:end].tolist() == theirs[0].tolist()


def test_types_and_skips_are_packed_in_order() -> None:
    batch = pack(
        [sequence(5, 6, 7), sequence(8)],
        token_type_ids=[sequence(0, 1, 1), sequence(1)],
        first_position=2,
        skip=[2, 0],
    )
    assert batch.token_type_ids.tolist() == [0, 1, 1, 1]
    assert batch.position_ids.tolist() == [2, 3, 4, 2]
    assert batch.skip.tolist() == [2, 0]
    assert all(
        getattr(batch, name).dtype == np.int32
        for name in ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "skip")
    )


def test_an_empty_batch_is_sound() -> None:
    batch = pack([])
    assert (batch.num_seqs, batch.num_tokens, batch.max_seqlen) == (0, 0, 0)


def fields(**changes: Any) -> dict[str, Any]:
    good = {
        "input_ids": sequence(4, 5, 6),
        "token_type_ids": sequence(0, 0, 0),
        "position_ids": sequence(0, 1, 0),
        "cu_seqlens": sequence(0, 2, 3),
        "skip": sequence(0, 0),
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": np.zeros(3, np.int64)}, ["input_ids", "int32", "int64"]),
        ({"position_ids": np.zeros((3, 1), np.int32)}, ["position_ids", "2-D"]),
        ({"token_type_ids": sequence(0, 0)}, ["token_type_ids", "num_tokens = 3", "2"]),
        ({"cu_seqlens": sequence(1, 2, 3)}, ["cu_seqlens", "start at 0"]),
        ({"cu_seqlens": sequence()}, ["cu_seqlens", "start at 0"]),
        ({"cu_seqlens": sequence(0, 2, 4)}, ["cu_seqlens", "num_tokens = 3", "got 4"]),
        ({"cu_seqlens": sequence(0, 0, 3)}, ["cu_seqlens", "increase"]),
        ({"cu_seqlens": sequence(0, 5, 3)}, ["cu_seqlens", "increase"]),
        ({"skip": sequence(0)}, ["skip", "num_seqs = 2"]),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    changes: dict[str, Any], words: list[str]
) -> None:
    Batch(**fields())
    with pytest.raises(InputError) as caught:
        Batch(**fields(**changes))
    for word in words:
        assert word in str(caught.value)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="at least one token"):
        pack([sequence(1), sequence(), sequence(2)])
