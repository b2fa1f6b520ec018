from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minibert import Engine, fidelity
from minibert.errors import InputError
from minibert.fidelity import compare, spearman

TEXTS = ["the cat sat", "a dog on the mat", "ice on the lake", "bread and paper", "safe moon"]


def test_equal_embeddings_are_perfect() -> None:
    rows = np.random.default_rng(0).standard_normal((12, 8))
    found = compare(rows, rows * 3.0)  # scale does not matter
    assert found.mean_cosine == pytest.approx(1.0, abs=1e-15)
    assert (found.spearman, found.top10_overlap, found.num_texts) == (pytest.approx(1.0), 1.0, 12)


def test_the_worst_text_and_the_neighbours_are_counted() -> None:
    rows = np.eye(4) + 0.1
    changed = rows.copy()
    changed[2] = -changed[2]
    found = compare(rows, changed)
    assert found.min_cosine == pytest.approx(-1.0)
    assert found.mean_cosine == pytest.approx(0.5)


def test_spearman_shares_the_ranks_of_ties() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9**0.5)
    assert spearman(np.array([1, 2, 3]), np.array([9, 5, 1])) == pytest.approx(-1.0)


def test_top10_overlap_is_the_share_of_common_neighbours() -> None:
    rng = np.random.default_rng(1)
    rows, changed = rng.standard_normal((2, 30, 6))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, changed)]
    shared = 0
    for i in range(30):
        near = [sorted((-(u @ u[i])[j], j) for j in range(30) if j != i)[:10] for u in unit]
        shared += len({j for _, j in near[0]} & {j for _, j in near[1]})
    assert compare(rows, changed).top10_overlap == pytest.approx(shared / 300)


def test_many_texts_are_paired_by_a_part_and_searched_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, changed = np.random.default_rng(2).standard_normal((2, 40, 6))
    whole = compare(rows, changed)
    monkeypatch.setattr(fidelity, "_BLOCK", 7 * 40)  # 40 is no multiple of 7 texts
    assert compare(rows, changed) == whole
    monkeypatch.setattr(fidelity, "PAIRED_TEXTS", 14)
    part = compare(rows, changed)
    assert (part.mean_cosine, part.top10_overlap) == (whole.mean_cosine, whole.top10_overlap)
    chosen = [3 * i for i in range(14)]  # 0 to 39 at even distances
    assert part.spearman == pytest.approx(compare(rows[chosen], changed[chosen]).spearman)


@pytest.mark.parametrize("shapes", [((2, 4), (2, 4)), ((5, 4), (5, 3)), ((5,), (5,))])
def test_too_few_texts_and_other_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match="must"):
        compare(*(np.ones(shape) for shape in shapes))


def test_an_engine_compares_itself_with_a_folder_an_engine_or_vectors(tiny: object) -> None:
    folder: Path = tiny("bert")  # type: ignore[operator]
    with Engine.from_pretrained(folder) as engine:
        by_folder = engine.fidelity(TEXTS, against=folder)
        assert by_folder == engine.fidelity(TEXTS, against=engine)
        assert by_folder == engine.fidelity(TEXTS, against=engine.encode(TEXTS))
        assert by_folder.mean_cosine == pytest.approx(1.0)
        assert by_folder == engine.fidelity(iter(TEXTS), against=engine)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="at least 3, got 1"):
            engine.fidelity("abc", against=engine)
