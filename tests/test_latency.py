"""The table of what heads and neurons cost, and targets that it has to meet.

A busy machine would time tiny models as it likes: their runs are given the time that they take.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minibert.compress import latency
from minibert.compress.prune import PruneTarget, prune_model
from minibert.compress.run import TextRun, encoder_flops
from minibert.loading import load_model
from tests.texts import texts


def runs_that_take(
    seconds: Callable[[Any, Any], float],
) -> Callable[[Any, Any], AbstractContextManager[Any]]:
    """In the place of `PreparedRun`: `seconds` of its texts and weights."""
    return lambda run, weights: nullcontext(SimpleNamespace(seconds=lambda: seconds(run, weights)))


def test_speed_and_latency_targets_are_met_by_the_table(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_operations = runs_that_take(lambda run, weights: 1e-6 * encoder_flops(weights, run))
    monkeypatch.setattr(latency, "PreparedRun", of_operations)
    loaded = load_model(tiny("bert"))
    run = TextRun(loaded, texts(9))
    whole = encoder_flops(loaded.weights, run)
    for target, most in (
        (PruneTarget(speedup=1.05), whole / 1.05),
        (PruneTarget(speedup=1.5), whole / 1.5),
        (PruneTarget(latency_ms=1e12), whole),
    ):
        out = tmp_path / f"{target.speedup}"
        prune_model(tiny("bert"), out, target, texts=texts())
        found = encoder_flops(load_model(out).weights, run)
        assert 0.8 * most < found <= 1.02 * most


def test_no_part_takes_less_than_no_time_where_measuring_was_disturbed(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_single = runs_that_take(lambda run, weights: 9.0 if len(weights.layers) == 1 else 2.0)
    monkeypatch.setattr(latency, "PreparedRun", late_single)
    loaded = load_model(tiny("bert"))
    table = latency.measure_latency(TextRun(loaded, texts(9)), loaded.weights, [1, 2], [16, 32])
    assert table.base == 2.0
    assert all(
        seconds >= 0 for part in (table.attention, table.feed_forward) for seconds in part.values()
    )
