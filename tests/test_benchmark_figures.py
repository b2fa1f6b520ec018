"""What the benchmarks compute of their samples and texts: statistics, vectors, workloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.best_peer import Lead, over_best_peer
from benchmarks.crew import request_padding
from benchmarks.rounds import (
    Sample,
    busy_seconds,
    clean_count,
    cosines,
    percentile,
    process_seconds,
    rotated,
    spread,
    summarise,
)
from benchmarks.speed_stages import compare
from benchmarks.workloads import TextSource, Workload, corpus, docstrings, sentences_of


def sample(seconds: float, foreign: float | None = 0.0) -> Sample:
    return Sample((seconds,), foreign)


def test_order_rotates() -> None:
    assert [rotated("abc", i) for i in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert rotated([], 3) == []


def test_disturbed_rounds_are_left_out() -> None:
    rounds = [{"base": sample(2.0), "fast": sample(1.0)} for _ in range(3)]
    rounds.append({"base": sample(9.0, 0.5), "fast": sample(1.0)})
    rounds.append({"base": sample(2.0), "fast": sample(9.0, 0.11)})
    found = summarise(rounds, "fast", "base", amount=10)
    assert found is not None
    assert found["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["per_s"]["median"] == 10
    assert (found["rounds"], found["left_out"], found["disturbed"]) == (3, 2, False)
    assert clean_count(rounds, "fast", "base") == 3


def test_all_rounds_are_used_and_marked_where_too_few_are_clean() -> None:
    rounds = [{"base": sample(2.0, 0.5), "fast": sample(s, 0.5)} for s in (1.0, 2.0, 4.0)]
    rounds.append({"base": sample(2.0), "fast": sample(1.0, None)})
    found = summarise(rounds, "fast", "base", amount=8)
    assert found is not None
    assert (found["rounds"], found["left_out"], found["disturbed"]) == (4, 0, True)
    assert found["ratio"]["low"] == 0.5


def test_what_was_handled_is_held_against_the_ceiling_of_the_moment() -> None:
    ceilings = (10.0, 5.0, None)
    rounds = [{"base": Sample((2.0,), 0.0, ceiling)} for ceiling in ceilings]
    found = summarise(rounds, "base", "base", amount=20)
    assert found is not None
    assert found["per_ceiling"] == {"median": 1.5, "low": 1.0, "high": 2.0}


def test_a_contender_without_samples_has_no_summary() -> None:
    assert summarise([{"base": sample(1.0)}], "gone", "base", amount=1) is None
    alone = summarise([{"fast": sample(1.0)}], "fast", "base", amount=1)
    assert alone is not None
    assert alone["ratio"] is None
    assert alone["per_ceiling"] is None


def test_the_lead_is_over_the_nearest_peer_of_the_format_in_the_same_rounds() -> None:
    def contender(dtype: str, *, minibert: bool = False) -> dict[str, Any]:
        return {"dtype": dtype, "minibert": minibert}

    def seconds(*values: float, foreign: float = 0.0) -> dict[str, Any]:
        names = ("ours", "near", "far", "quick")
        pairs = zip(names, values, strict=True)
        return {name: {"s": value, "foreign": foreign} for name, value in pairs}

    results = {
        "contenders": {
            "ours": contender("int8", minibert=True),
            "near": contender("int8"),
            "far": contender("int8"),
            "quick": contender("float32"),
        },
        "mixed": {
            "samples": [
                seconds(1.0, 1.5, 4.0, 0.1),
                seconds(2.0, 3.2, 8.0, 0.1),
                seconds(4.0, 5.6, 9.0, 0.1),
                seconds(9.0, 1.0, 1.0, 0.1, foreign=0.5),
            ]
        },
        "short": {"skipped": "no time"},
    }
    assert over_best_peer(results, "ours", "mixed") == Lead(1.5, "near", False)
    assert over_best_peer(results, "ours", "short") is None
    assert over_best_peer(results, "quick", "mixed") is None


def test_spread_and_percentiles() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert percentile([7.0], 99) == 7


def test_cosines_of_rows() -> None:
    found = cosines(np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[2.0, 0], [1, -1], [1, 1]]))
    np.testing.assert_allclose(found[:2], [1, 0])
    assert np.isnan(found[2])


def test_compare_finds_wrong_vectors() -> None:
    right = np.eye(4, 8)
    assert compare(right, right, "float32")["right"]
    assert "must be (4, 8)" in compare(right[:3], right, "float32")["why"]
    assert "mean cosine 0.25" in compare(np.roll(right, 1, 0) * 0 + right[0], right, "int8")["why"]
    assert "not finite" in compare(np.full((4, 8), np.nan), right, "int8")["why"]


def test_processor_time_is_read_from_proc() -> None:
    ticks = 100 * busy_seconds("cpu  1 2 3 1000 1000 4 5 6 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert ticks == pytest.approx(21, rel=1) and ticks > 0
    stat = "12 (a) name) S 1 1 1 0 -1 0 0 0 0 0 300 200 0 0 20 0 3 0 0"
    assert process_seconds(stat) == pytest.approx(5, rel=1)


# ---- texts ------------------------------------------------------------------------------------
def words(texts: Any) -> list[int]:
    """Two special tokens and one for each word."""
    return [len(text.split()) + 2 for text in texts]


def test_workloads_have_their_lengths_and_their_seed() -> None:
    source = TextSource(words, max_length=256)
    short, long, mixed = source.short(200), source.long(20), source.mixed(2000)
    assert min(short.seqlens) >= 5 and max(short.seqlens) <= 20
    assert min(long.seqlens) >= 218 and max(long.seqlens) <= 256
    assert min(mixed.seqlens) >= 5 and max(mixed.seqlens) <= 256
    assert 44 <= np.median(mixed.seqlens) <= 52
    assert 58 <= np.mean(mixed.seqlens) <= 66
    assert source.mixed(50) == TextSource(words, max_length=256).mixed(50)
    assert source.mixed(50).digest != TextSource(words, max_length=256, seed=1).mixed(50).digest
    assert max(TextSource(words, max_length=9).short(20).seqlens) == 9


def test_the_corpus_is_prose() -> None:
    assert len(corpus()) > 3000
    assert sentences_of("One two three four. 1 + 2 == 3 ; 4 {} [] ()\n\n>>> code is left out") == [
        "One two three four."
    ]
    assert docstrings('"""Module."""\ndef f():\n    """Function."""\n') == ["Module.", "Function."]


def test_padding_of_sorted_batches() -> None:
    workload = Workload("w", ("a",) * 4, (4, 1, 4, 1))
    assert workload.padding(2) == 1
    assert workload.padding(4) == 1.6
    assert request_padding(workload, 2) == 1.6
