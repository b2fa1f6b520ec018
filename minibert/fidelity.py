"""How faithful one model's embeddings are to another's, on the same texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibert.arguments import as_texts
from minibert.errors import InputError
from minibert.similarity import normalize_rows

if TYPE_CHECKING:
    from minibert.engine import Engine

NEIGHBOURS = 10
FEWEST_TEXTS = 3  # two pairwise similarities are needed for a correlation of ranks
PAIRED_TEXTS = 2000  # 2 million pairs, which take 0.2 GB while they are ranked
_BLOCK = 1 << 22  # cosines that the search for neighbours holds at once


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a changed model kept of the original.

    Attributes:
        mean_cosine: between a text's two embeddings, over all texts; 1 is perfect.
        min_cosine: of the worst text.
        spearman: rank correlation of all pairwise cosines: does the order of similarities survive?
            Of more than 2,000 texts, 2,000 at even distances are paired.
        top10_overlap: share of a text's ten nearest other texts that stay among its ten nearest.
        num_texts: how many texts this rests on.
    """

    mean_cosine: float
    min_cosine: float
    spearman: float
    top10_overlap: float
    num_texts: int

    def __str__(self) -> str:
        """All four measures on one line."""
        return (
            f"cosine {self.mean_cosine:.5f} (worst {self.min_cosine:.5f}), Spearman "
            f"{self.spearman:.4f}, top-10 overlap {self.top10_overlap:.3f}, {self.num_texts} texts"
        )


def compare(original: NDArray[Any], changed: NDArray[Any]) -> Fidelity:
    """Compare two sets of embeddings of the same texts.

    Args:
        original: (num_texts, dimension), any scale.
        changed: the same texts in the same order.

    Raises:
        InputError: fewer than three texts, or shapes that differ.
    """
    if original.ndim != 2 or original.shape != changed.shape:
        raise InputError(
            f"changed must have the shape of original = {original.shape}, got {changed.shape}"
        )
    num_texts = len(original)
    if num_texts < FEWEST_TEXTS:
        raise InputError(f"texts must be at least {FEWEST_TEXTS}, got {num_texts}")
    first = normalize_rows(np.asarray(original, np.float64))
    second = normalize_rows(np.asarray(changed, np.float64))
    cosines = np.einsum("ij,ij->i", first, second)
    paired = np.linspace(0, num_texts - 1, min(num_texts, PAIRED_TEXTS)).astype(int)
    upper = np.triu_indices(len(paired), 1)
    pairs = [(rows[paired] @ rows[paired].T)[upper] for rows in (first, second)]
    return Fidelity(
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        spearman=spearman(*pairs),
        top10_overlap=_overlap(first, second, min(NEIGHBOURS, num_texts - 1)),
        num_texts=num_texts,
    )


def compare_with(
    engine: Engine, texts: Sequence[str], original: Engine | str | os.PathLike[str] | NDArray[Any]
) -> Fidelity:
    """See `Engine.fidelity`."""
    if isinstance(original, str | os.PathLike):
        options: dict[str, Any] = {"dtype": "float32", "truncation": "silent"}
        with type(engine).from_pretrained(original, **options) as loaded:
            return compare_with(engine, texts, loaded)
    texts = as_texts(texts)[0]
    expected = original.encode(texts) if isinstance(original, type(engine)) else original
    return compare(np.asarray(expected), engine.encode(texts))


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Correlation of the ranks, ties sharing their mean rank; 1.0 for two constant inputs."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    if scale == 0.0:
        return 1.0 if not any(rank.any() for rank in centred) else 0.0
    return float(centred[0] @ centred[1]) / scale


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = last - (counts - 1) / 2
    return mean_rank[inverse]


def _overlap(first: NDArray[Any], second: NDArray[Any], count: int) -> float:
    """Share of neighbours in common, of (num_texts, dimension) unit vectors."""
    shared, step = 0, max(1, _BLOCK // len(first))
    for begin in range(0, len(first), step):
        near = [_nearest(rows, begin, begin + step, count) for rows in (first, second)]
        shared += sum(len(set(a) & set(b)) for a, b in zip(*near, strict=True))
    return shared / (count * len(first))


def _nearest(rows: NDArray[Any], begin: int, end: int, count: int) -> list[list[int]]:
    """The numbers of the nearest other texts of some texts, nearest first."""
    cosines = rows[begin:end] @ rows.T
    own = np.arange(len(cosines))
    cosines[own, begin + own] = -np.inf
    nearest: list[list[int]] = np.argsort(-cosines, kind="stable")[:, :count].tolist()
    return nearest
