"""Texts and vectors that come with minibert: for `minibert demo`, and for calibration.

| file | content |
|---|---|
| texts.txt | a short text on each line, written for this project |
| questions.txt | a question on each line |
| calibration.txt | a text on each line, written for this project: other texts, to calibrate with |
| wordnet.txt | a text on each line, to fit pruned models on: examples, definitions of WordNet 3.0 |
| wordnet_license.txt | its licence: free use, copying and distribution, with this notice |
| questions.npy | (num_questions, 384) float32: the questions' vectors |

The vectors are those of sentence-transformers 6.2.0 with all-MiniLM-L6-v2; a test computes them
again. `benchmarks/compression_texts.py` writes wordnet.txt.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def demo_texts() -> list[str]:
    """Return the texts that the demonstration searches."""
    return _lines("texts.txt")


def demo_questions() -> list[str]:
    """Return the questions that the demonstration asks."""
    return _lines("questions.txt")


def calibration_texts() -> list[str]:
    """Return the texts that calibrate compression where the user gives none."""
    return _lines("calibration.txt")


def many_calibration_texts() -> list[str]:
    """Return the texts that pruning is fitted on where the user gives none: thousands."""
    return [*calibration_texts(), *_lines("wordnet.txt")]


def _lines(name: str) -> list[str]:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8").splitlines()


def demo_vectors() -> NDArray[np.float32]:
    """Return the questions' vectors as sentence-transformers gives them, (num_questions, 384)."""
    import numpy as np

    with resources.files(__name__).joinpath("questions.npy").open("rb") as file:
        vectors: NDArray[np.float32] = np.load(file, allow_pickle=False)
    return vectors
