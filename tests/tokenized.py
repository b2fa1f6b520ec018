"""Texts for tokenizers, and their ids by transformers and by minibert."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from minibert.tokenizer import Text, TokenizedTexts, Tokenizer

NASTY = [
    "",
    " ",
    "a",
    "The CAT sat on the mat.",
    "Café naïve RÉSUMÉ é",
    "你好世界 the 世 cat",
    "שלום عالم",
    "🙂 the 👩‍👩‍👧 cat 🏳️‍🌈",
    "a\x00b\x07c\u200bd\ufeffe\u00ad",
    "\t\n\r\u00a0\u3000 the \u2028 cat",
    "[CLS] the [SEP] [MASK] [PAD] [UNK] x",
    "<s> the </s> <mask> <pad> <unk> x",
    "z" * 150,
    "the cat " * 100,
    "ﬁne ① Ⅷ ㎏ \uff46\uff55",
    "İstanbul ıİ ẞß Σς",
    "A\u0301 e\u0301 \u0301",
    "\U0001f600\U00010348\U000e0041",
]


@cache
def reference(folder: Path, side: str = "right") -> Any:
    """transformers' AutoTokenizer; each folder is asked only in its final state."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, truncation_side=side)


def theirs(folder: Path, texts: list[Text], max_length: int, side: str = "right") -> list[Any]:
    """(ids, types) of transformers' AutoTokenizer, in batch form, unpadded."""
    parts: tuple[list[str], ...] = (
        tuple(map(list, zip(*texts, strict=True))) if isinstance(texts[0], tuple) else (texts,)  # type: ignore[assignment]
    )
    out = reference(folder, side)(
        *parts, truncation="longest_first", max_length=max_length, return_token_type_ids=True
    )
    return list(zip(out["input_ids"], out["token_type_ids"], strict=True))


def ours(folder: Path, texts: list[Text], max_length: int, side: str = "right") -> list[Any]:
    tokenized = Tokenizer.from_folder(folder).encode(
        texts,
        max_length=max_length,
        truncation_side=side,  # type: ignore[arg-type]
    )
    return pairs_of(tokenized)


def pairs_of(tokenized: TokenizedTexts) -> list[Any]:
    return [
        (ids.tolist(), types.tolist())
        for ids, types in zip(tokenized.input_ids, tokenized.token_type_ids, strict=True)
    ]


def random_texts(count: int, longest: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "cat", "unhappy", "running", "Xyz", "你", "é", ",", "soft"]
    return [" ".join(rng.choices(words, k=rng.randint(0, longest))) for _ in range(count)]
