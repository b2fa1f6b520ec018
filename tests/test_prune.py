from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.compress.prune import PruneTarget, prune_model
from minibert.compress.quantize import QuantizeOptions, quantize_model
from minibert.compress.refit import refit
from minibert.compress.run import TextRun
from minibert.errors import InputError, WeightsError
from minibert.loading import load_model
from minibert.weights.prune import (
    Level,
    Moments,
    allocate,
    damped,
    head_columns,
    head_importance,
    prune_feed_forward,
    prune_heads,
    refit_columns,
    refit_to_target,
    removal_order,
)
from tests.cpu_encoder import needs_kernels
from tests.texts import texts


def problem(out_features: int = 20, columns: int = 24) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((columns, columns))
    x = rng.standard_normal((500, columns)) @ mixing
    return rng.standard_normal((out_features, columns)), damped(x.T @ x)


def lost(weight: Any, moments: Any, keep: Any) -> float:
    """Squared error of the outputs with only these columns, refitted, by definition."""
    full = np.zeros_like(weight)
    full[:, keep] = refit_columns(weight, moments, keep)
    return float(np.einsum("ij,jk,ik->", full - weight, moments, full - weight))


# ---- orders and refits -------------------------------------------------------------------------
@pytest.mark.parametrize("group", [1, 4])
def test_the_first_to_go_costs_least_after_refitting(group: int) -> None:
    weight, moments = problem()
    everything = np.arange(24)
    losses = [
        lost(weight, moments, np.delete(everything, slice(g * group, (g + 1) * group)))
        for g in range(24 // group)
    ]
    order = removal_order(weight, moments, group=group)
    assert sorted(order.tolist()) == list(range(24 // group))
    assert order[0] == int(np.argmin(losses))
    if group == 4:
        np.testing.assert_allclose(head_importance(weight, moments, 4), losses, rtol=1e-3)


def test_every_further_step_is_the_best_one_too() -> None:
    weight, moments = problem()
    order = removal_order(weight, moments)
    for step in range(1, 12):
        gone = order[:step]
        left = np.setdiff1d(np.arange(24), gone)
        losses = {j: lost(weight, moments, np.setdiff1d(left, [j])) for j in left}
        assert losses[order[step]] <= min(losses.values()) * (1 + 1e-3)


def test_removal_order_beats_magnitude() -> None:
    weight, moments = problem(out_features=64)
    keep = np.sort(removal_order(weight, moments)[12:])
    largest = np.sort(np.argsort(np.square(weight).sum(axis=0))[12:])
    assert lost(weight, moments, keep) < lost(weight, moments, largest)


def test_cutting_in_two_steps_equals_cutting_at_once() -> None:
    weight, moments = problem()
    order = removal_order(weight, moments)
    first, second = np.sort(order[6:]), np.sort(order[14:])
    once = refit_columns(weight, moments, second)
    half = refit_columns(weight, moments, first)
    inside = np.searchsorted(first, second)
    twice = refit_columns(half, moments[np.ix_(first, first)], inside)
    # Both solve the same equations in float64; the first step's result is stored in float32.
    np.testing.assert_allclose(twice, once, rtol=1e-3, atol=1e-4 * np.abs(once).max())
    # The order is the same, too, when the first step's removals are done first.
    covariance = np.linalg.inv(moments)
    rest = np.ix_(first, first)
    gone = np.setdiff1d(np.arange(24), first)
    marginal = np.linalg.inv(
        covariance[rest]
        - covariance[np.ix_(first, gone)]
        @ np.linalg.solve(covariance[np.ix_(gone, gone)], covariance[np.ix_(gone, first)])
    )
    assert first[removal_order(half, marginal)].tolist() == order[6:].tolist()


def test_moments_give_the_error_of_any_map_and_the_refit_the_least() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 10)).astype(np.float32)
    true = rng.standard_normal((6, 10))
    y = (x @ true.T + 0.5 + 0.01 * rng.standard_normal((400, 6))).astype(np.float32)
    train = Moments.empty(10, 6).plus(x[:300], y[:300])
    check = Moments.empty(10, 6).plus(x[300:], y[300:])
    prior = (true + 0.3).astype(np.float32)
    given = np.concatenate((prior, np.zeros((6, 1))), axis=1)
    expected = np.square(y[300:] - x[300:] @ prior.T).sum() / 100
    assert check.error(given) == pytest.approx(expected, rel=1e-4)
    fitted = refit_to_target(train, check, prior, np.zeros(6, np.float32))
    assert np.abs(fitted.weight - true).max() < 0.02
    assert fitted.bias is not None
    assert np.abs(fitted.bias - 0.5).max() < 0.02


def test_a_refit_that_would_not_pay_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 30)).astype(np.float32)
    x = rng.standard_normal((12, 30)).astype(np.float32)
    noise = rng.standard_normal((12, 5)).astype(np.float32) * 50
    train = Moments.empty(30, 5).plus(x, x @ weight.T + noise)
    check = Moments.empty(30, 5).plus(-x, -x @ weight.T)
    same = refit_to_target(train, check, weight, np.zeros(5, np.float32))
    assert np.array_equal(same.weight, weight)


def test_the_mean_of_a_text_can_count_more() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 3)).astype(np.float32)
    y = rng.standard_normal((7, 2)).astype(np.float32)
    bounds = np.array([0, 3, 7])
    found = Moments.empty(3, 2).plus(x, y, bounds, mean_weight=2.0)
    error = found.error(np.zeros((2, 4))) * found.num_tokens
    means = sum(n * np.square(y[a:b].mean(axis=0)).sum() for a, b, n in ((0, 3, 3), (3, 7, 4)))
    assert error == pytest.approx(np.square(y).sum() + 2.0 * means, rel=1e-5)


# ---- allocation --------------------------------------------------------------------------------
def test_allocation_is_the_best_of_all_choices() -> None:
    rng = np.random.default_rng(0)
    parts = {
        name: [Level(k, float(k), float(h)) for k, h in enumerate(-np.sort(-rng.random(5)), 1)]
        for name in "abcd"
    }
    for budget in (4.0, 9.5, 13.5, 20.5):
        found = allocate(parts, budget)
        assert sum(level.cost for level in found.values()) <= budget
        best = min(
            sum(level.harm for level in choice)
            for choice in np.array(np.meshgrid(*parts.values(), indexing="ij"), dtype=object)
            .reshape(4, -1)
            .T
            if sum(level.cost for level in choice) <= budget
        )
        assert sum(level.harm for level in found.values()) == pytest.approx(best)
    with pytest.raises(InputError, match="target"):
        allocate(parts, 3.9)


# ---- cutting -----------------------------------------------------------------------------------
def test_kept_heads_and_neurons_are_the_same_bytes(tiny: Any) -> None:
    layer = load_model(tiny("bert")).weights.layers[1]
    cut = prune_heads(layer, [0, 3])
    columns = head_columns(np.array([0, 3]), 12)
    assert cut.num_heads == 2
    for part in range(3):
        old = layer.qkv.weight[48 * part : 48 * (part + 1)][columns]
        assert np.array_equal(cut.qkv.weight[24 * part : 24 * (part + 1)], old)
    assert np.array_equal(cut.attention_output.weight, layer.attention_output.weight[:, columns])
    narrow = prune_feed_forward(layer, [5, 1, 99])
    assert np.array_equal(narrow.intermediate.weight, layer.intermediate.weight[[1, 5, 99]])
    assert np.array_equal(narrow.output.weight, layer.output.weight[:, [1, 5, 99]])
    assert prune_heads(layer, range(4)) is layer
    for bad in ([], [0, 0], [4], [-1]):
        with pytest.raises(InputError, match="keep_heads"):
            prune_heads(layer, bad)


def test_unpruned_heads_give_what_they_gave_before_refitting(tiny: Any) -> None:
    """Context of the kept heads in the first layer, which sees the same hidden states."""
    loaded = load_model(tiny("bert"))
    run = TextRun(loaded, texts(6))
    layers = loaded.weights.layers
    cut = replace(loaded.weights, layers=(prune_heads(layers[0], [1, 2]), *layers[1:]))
    seen: list[list[Any]] = [[], []]
    for k, weights in enumerate((loaded.weights, cut)):
        run.embeddings(
            weights,
            observer=lambda event, k=k: seen[k].append(event.hidden),
            names="layer.0.attention_output".__eq__,
        )
    for full, kept in zip(*seen, strict=True):
        assert np.array_equal(full[:, 12:36], kept)


def test_refitting_the_unchanged_model_changes_nearly_nothing(tiny: Any) -> None:
    loaded = load_model(tiny("bert"))
    run = TextRun(loaded, texts())
    same = refit(run, loaded.weights, loaded.weights)
    np.testing.assert_allclose(run.embeddings(same), run.embeddings(), atol=1e-3)


# ---- whole models ------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta"])
def test_a_pruned_model_is_smaller_loads_and_is_near(
    tiny: Any, tmp_path: Path, family: str
) -> None:
    folder = tiny(family)
    result = prune_model(folder, tmp_path / "p", PruneTarget(flops=0.7), texts=texts())
    assert result.report is not None
    assert result.report.flop_ratio >= 1 / 0.7
    assert result.report.changed_bytes < result.report.original_bytes
    assert result.report.fidelity.mean_cosine > 0.7  # random weights: nothing to spare
    loaded = load_model(tmp_path / "p")
    shapes = [(x.num_heads, len(x.intermediate.weight)) for x in loaded.weights.layers]
    assert shapes == list(result.shapes) == list(loaded.config.layer_shapes)
    assert len(set(shapes)) > 1  # uneven
    assert [path.name for path in tmp_path.iterdir()] == ["p"]  # no journal left


def test_pruning_nothing_reproduces_every_file(tiny: Any, tmp_path: Path) -> None:
    folder = tiny("bert")
    for number, target in enumerate((PruneTarget(), PruneTarget(speedup=1.0))):
        prune_model(folder, tmp_path / str(number), target, texts=texts())
        for path in folder.iterdir():
            assert (tmp_path / str(number) / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_dropped_layers_are_gone(tiny: Any, tmp_path: Path, family: str) -> None:
    result = prune_model(tiny(family), tmp_path / "p", PruneTarget(drop_layers=1), texts=texts())
    loaded = load_model(tmp_path / "p")
    assert len(loaded.weights.layers) == len(result.kept_layers) == 2
    assert loaded.config.num_hidden_layers == 2


def test_half_precision_files_keep_their_dtype(tiny: Any, tmp_path: Path) -> None:
    for dtype, name in (("bfloat16", "BF16"), ("float16", "F16")):
        target = tmp_path / dtype
        prune_model(tiny("bert", dtype=dtype), target, PruneTarget(flops=0.8), texts=texts())
        assert load_model(target).weights.dtypes == (name,)


def test_a_pruned_model_can_be_quantized_and_stays_batch_invariant(
    tiny: Any, tmp_path: Path
) -> None:
    prune_model(tiny("bert"), tmp_path / "p", PruneTarget(flops=0.7), texts=texts())
    options = QuantizeOptions(min_cosine=None)
    quantize_model(tmp_path / "p", tmp_path / "pq", options=options, texts=texts())
    with Engine.from_pretrained(tmp_path / "pq") as engine:
        together = engine.encode(texts(9))
        assert together.tobytes() == np.stack([engine.encode(t) for t in texts(9)]).tobytes()
        assert engine.fidelity(texts(9), against=tmp_path / "p").mean_cosine > 0.99
    with pytest.raises(InputError, match="quantized"):
        prune_model(tmp_path / "pq", tmp_path / "x", PruneTarget(flops=0.9), texts=texts())


def test_a_stopped_run_goes_on_and_gives_the_same(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minibert.compress import refit

    target = PruneTarget(flops=0.7)
    prune_model(tiny("bert"), tmp_path / "whole", target, texts=texts())

    whole = refit._refit_layer
    calls: list[int] = []

    def stop_at_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(refit, "_refit_layer", stop_at_the_second)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        prune_model(tiny("bert"), tmp_path / "p", target, texts=texts(), say=said.append)
    assert (tmp_path / ".p.progress.0.safetensors").exists()
    calls.extend([1] * 9)
    before = len(calls)
    journal = tmp_path / ".p.progress.json"
    kept = json.loads(journal.read_text())["values"]
    assert kept and not (tmp_path / "p").exists()
    assert said[-1] == f"Stopped; the same command goes on from {len(kept)} measurements."
    journal.with_name(journal.name + ".partial").touch()  # as a run killed while it wrote leaves it
    said.clear()
    prune_model(tiny("bert"), tmp_path / "p", target, texts=texts(), say=said.append)
    assert f"{len(kept)} measurements" in said[0]
    assert len(calls) - before == 2  # of three layers, the first was fitted already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "whole"]
    file = "model.safetensors"
    assert (tmp_path / "p" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"speedup": 0.5}, "speedup"),
        ({"speedup": float("nan")}, "speedup"),
        ({"flops": 0.0}, "flops"),
        ({"latency_ms": -1.0}, "latency_ms"),
        ({"drop_layers": -1}, "drop_layers"),
        ({"speedup": 1.5, "flops": 0.5}, "one of"),
    ],
)
def test_targets_are_checked(keywords: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        PruneTarget(**keywords)


def test_targets_out_of_reach_are_refused_and_leave_nothing(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="flops must be at least"):
        prune_model(tiny("bert"), tmp_path / "p", PruneTarget(flops=0.01), texts=texts())
    with pytest.raises(InputError, match="drop_layers"):
        prune_model(tiny("bert"), tmp_path / "p", PruneTarget(drop_layers=3), texts=texts())
    assert not list(tmp_path.iterdir())


def test_shapes_that_are_not_those_of_the_config_are_refused(tiny: Any, tmp_path: Path) -> None:
    prune_model(tiny("bert"), tmp_path / "p", PruneTarget(flops=0.7), texts=texts())
    path = tmp_path / "p" / "config.json"
    config = json.loads(path.read_text())
    config["layer_shapes"][1][1] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="layer_shapes"):
        load_model(tmp_path / "p")


@needs_kernels
def test_a_pruned_quantized_model_is_the_same_on_the_cpu_and_on_the_emulated_gpu(
    tiny: Any, tmp_path: Path
) -> None:
    # Widths that tensor cores take, and heads of 16.
    folder = tiny("bert", hidden_size=64, intermediate_size=128)
    prune_model(folder, tmp_path / "p", PruneTarget(flops=0.7), texts=texts())
    options = QuantizeOptions(min_cosine=None)
    quantize_model(tmp_path / "p", tmp_path / "pq", options=options, texts=texts())
    given = texts(3)
    with Engine.from_pretrained(tmp_path / "pq", dtype="float32", device="cpu") as engine:
        exact = engine.encode(given)
    with Engine.from_pretrained(tmp_path / "pq", device="cpu") as engine:
        on_cpu = engine.encode(given)
    with Engine.from_pretrained(tmp_path / "pq", device="emulator") as engine:
        assert ", int8" in engine.explain()
        on_gpu = engine.encode(given)
    # Both quantise activations to 8 bits, one with a zero point and one without.
    plain = np.abs(on_cpu - exact).max()
    assert np.abs(on_gpu - exact).max() <= 4 * plain
