"""The real model against sentence-transformers really running, on real and on nasty texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine

NASTY = [
    "",
    "a",
    " ",
    "😀🎉 party 👩‍👩‍👧‍👦 🏳️‍🌈",
    "你好,世界。这是一个测试",
    "שלום עולם مرحبا بالعالم",
    "word " * 5000,
    "\x00\x01\x02 control \x07 characters\t\r\n\x1b[31m",
    "a\u0301e\u0300 combining, ﬁ ligature, \ufeff mark, \u200b zero width, \u202e override",
    "x" * 3000,
    "[CLS] [SEP] [MASK] [PAD] written out",
    "twice",
    "twice",
    "https://example.org/a?b=c#d user@example.org 3.14159 -1e-10 #tag @name",
]


def real_texts(count: int) -> list[str]:
    """Documentation that ships with Python, in pieces of one to five sentences."""
    from pydoc_data.topics import topics

    prose = " ".join(" ".join(text.split()) for text in topics.values())
    sentences = [s for s in re.split(r"(?<=[.!?]) ", prose) if len(s) > 20]
    rng = np.random.default_rng(0)
    texts, begin = [], 0
    while len(texts) < count:
        size = int(rng.integers(1, 6))
        texts.append(" ".join(sentences[begin : begin + size]))
        begin += size
    return texts


@pytest.fixture(scope="module")
def both(minilm: Path) -> tuple[list[str], Any, Any]:
    """Texts, our vectors, theirs."""
    from sentence_transformers import SentenceTransformer

    texts = real_texts(500) + NASTY
    with Engine.from_pretrained(minilm, truncation="silent") as engine:
        ours = engine.encode(texts)
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    return texts, ours, theirs


def test_vectors_equal_those_of_sentence_transformers(both: tuple[list[str], Any, Any]) -> None:
    texts, ours, theirs = both
    assert len(texts) >= 500
    assert ours.shape == theirs.shape == (len(texts), 384)
    assert np.abs(ours - theirs).max() <= 2e-6  # ten roundings of float32 at unit length
    assert (ours * theirs).sum(axis=1).min() >= 0.999999


def test_vectors_are_unit_vectors_and_duplicates_are_equal(
    both: tuple[list[str], Any, Any],
) -> None:
    texts, ours, _ = both
    assert np.abs(np.linalg.norm(ours.astype(np.float64), axis=1) - 1).max() <= 1e-6
    first = texts.index("twice")
    assert ours[first].tobytes() == ours[first + 1].tobytes()


def test_vectors_are_as_near_to_float64_as_those_of_sentence_transformers(
    minilm: Path, both: tuple[list[str], Any, Any]
) -> None:
    texts, ours, theirs = both
    chosen = list(range(0, len(texts), 25))
    with Engine.from_pretrained(
        minilm, device="numpy", dtype="float64", truncation="silent"
    ) as engine:
        exact = engine.encode([texts[i] for i in chosen])
    assert np.abs(ours[chosen] - exact).max() <= 2 * np.abs(theirs[chosen] - exact).max()
