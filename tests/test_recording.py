from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from minibert.compress.run import TextRun
from minibert.loading import load_model
from minibert.ops.recording import LinearEvent, StatisticsObserver
from minibert.weights.statistics import Histogram, LinearStatistics

TEXTS = ["the cat sat on the mat", "a dog", "ice on the lake and bread", "paper bag moon sun"] * 3


def record(folder: Path) -> tuple[Any, dict[str, list[LinearEvent]], Any]:
    run = TextRun(load_model(folder), TEXTS)
    events: dict[str, list[LinearEvent]] = defaultdict(list)
    rows = run.embeddings(observer=lambda event: events[event.name].append(event))
    return run, events, rows


def test_recording_changes_no_byte_and_names_every_layer(tiny: Any) -> None:
    run, events, rows = record(tiny("bert"))
    assert rows.tobytes() == run.embeddings().tobytes()
    parts = ("qkv", "attention_output", "intermediate", "output")
    assert set(events) == {f"layer.{i}.{part}" for i in range(3) for part in parts}


def test_an_event_holds_what_the_layer_saw_and_gave(tiny: Any) -> None:
    run, events, _ = record(tiny("bert"))
    layer = run.loaded.weights.layers[1]
    for event in events["layer.1.output"]:
        assert event.residual is not None
        expected = event.hidden @ layer.output.weight.T + layer.output.bias + event.residual
        assert np.abs(event.out - expected).max() <= 1e-4 * np.abs(expected).max()
        assert event.cu_seqlens[-1] == len(event.hidden)
    assert sum(len(event.hidden) for event in events["layer.1.output"]) == run.num_tokens


def test_statistics_are_those_of_all_tokens(tiny: Any) -> None:
    run, events, _ = record(tiny("roberta"))
    observer = StatisticsObserver()
    run.embeddings(observer=observer)
    for name, found in observer.statistics.items():
        rows = np.concatenate([event.hidden for event in events[name]]).astype(np.float64)
        assert found.num_tokens == len(rows)
        np.testing.assert_allclose(found.gram, rows.T @ rows, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.total, rows.sum(axis=0), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.absmax, np.abs(rows).max(axis=0), rtol=1e-6)
        assert found.histogram.counts.sum() == rows.size


def test_head_moments_are_mean_squares_by_head() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 12)) * np.repeat([1, 2, 3], 4)
    found = LinearStatistics.empty(12)
    found.add(rows[:20])
    found.add(rows[20:])
    expected = np.square(rows).reshape(50, 3, 4).mean(axis=(0, 2))
    np.testing.assert_allclose(found.head_moments(3), expected)


def test_a_histogram_grows_and_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(500) * scale for scale in (0.1, 1.0, 30.0, 2.0)]
    grown = Histogram()
    for part in parts:
        grown.add(part)
    magnitudes = np.abs(np.concatenate(parts))
    assert grown.limit >= magnitudes.max()
    expected, _ = np.histogram(magnitudes, bins=grown.counts.size, range=(0.0, grown.limit))
    assert grown.counts.sum() == expected.sum() == magnitudes.size
    # A value on the border of two bins may round to either.
    assert np.abs(np.cumsum(grown.counts) - np.cumsum(expected)).max() <= 1


def test_zeros_only_are_counted() -> None:
    found = Histogram()
    found.add(np.zeros(5))
    found.add(np.zeros(0))
    assert (found.counts[0], found.counts.sum()) == (5, 5)
