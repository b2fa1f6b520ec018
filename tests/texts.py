"""Short texts of words that the tiny models' tokenizer knows, to calibrate and to compare with."""

from __future__ import annotations

import numpy as np

WORDS = "the a cat dog sat on mat and bread stays soft in paper bag ice lake walk safe sun moon"


def texts(count: int = 60) -> list[str]:
    """3 to 11 words and a letter each; the first ones are the same for every count."""
    rng = np.random.default_rng(5)
    words = WORDS.split()
    return [" ".join(rng.choice(words, 3 + i % 9)) + f" {chr(97 + i % 26)}" for i in range(count)]
