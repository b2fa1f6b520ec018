"""Measures what cutting heads, neurons and layers costs and saves, and cuts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.compress.latency import LatencyTable, flops_table, measure_latency
from minibert.compress.layerwise import LayerWalk, States
from minibert.compress.progress import FITTED, Journal, LayerStore
from minibert.compress.refit import counterparts, refit, take_norms
from minibert.compress.run import TextRun
from minibert.compress.target import PruneTarget
from minibert.errors import InputError
from minibert.fidelity import compare
from minibert.loading import LoadedModel
from minibert.ops.recording import LinearEvent
from minibert.weights.checkpoint import EncoderWeights, LayerWeights
from minibert.weights.prune import (
    IntArray,
    Level,
    allocate,
    damped,
    head_columns,
    interpolate,
    prune_feed_forward,
    prune_heads,
    refit_columns,
    removal_order,
)

Say = Callable[[str], None]
_WIDTH_STEPS = 32  # widths to choose from, per layer
_TILE = 16  # columns that the kernels compute together
_HEAD_POINTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of heads at which the harm is measured
_WIDTH_POINTS = (1.0, 0.75, 0.5, 0.25, 0.0)
_HARM_TEXTS = 64
_TIMED_TEXTS = 24
_AT_ONCE = 16  # neurons removed before the others are judged again


class Pruner:
    """Measures what cutting costs and saves, and cuts."""

    def __init__(
        self,
        loaded: LoadedModel,
        texts: Sequence[str],
        journal: Journal,
        say: Say = lambda line: None,
        *,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        """Hold the model and the calibration texts; nothing runs yet."""
        self.loaded = loaded
        self.journal = journal
        name = journal.path.name.removesuffix(".json")
        self.layers_path = journal.path.with_name(name)
        self.say = say
        self.progress = progress

        def every(count: int) -> TextRun:
            return TextRun(loaded, texts[:: max(1, len(texts) // count)], device=device)

        self.run = every(len(texts))
        self.harm_run = every(_HARM_TEXTS)
        self.timed_run = every(_TIMED_TEXTS)
        self.head_dim = loaded.config.head_dim

    def prune(self, target: PruneTarget) -> tuple[tuple[int, ...], EncoderWeights]:
        """Cut and refit.

        Returns:
            Numbers of the kept layers, and the weights; the loaded ones where nothing was asked.
        """
        teacher = self.loaded.weights
        everything = tuple(range(len(teacher.layers)))
        cuts = target.speedup not in (None, 1.0) or target.flops not in (None, 1.0)
        cuts = cuts or target.latency_ms is not None or self._narrows(target)
        if not cuts and target.drop_layers == 0:
            return everything, teacher
        kept = self.choose_layers(target.drop_layers)
        student = replace(teacher, layers=tuple(teacher.layers[i] for i in kept))
        if cuts:
            student = self._cut(student, target)
        self.say("Refitting what is left ...")
        bar = self._bar(len(kept), "refit")
        matching = counterparts(kept, len(teacher.layers))
        student = take_norms(student, teacher, matching)
        store = self._store(student, matching)
        student = refit(self.run, teacher, student, matching=matching, store=store, step=bar.update)
        bar.close()
        return kept, student

    def _store(self, student: EncoderWeights, matching: Sequence[int]) -> LayerStore:
        """Where fitted layers of just these columns are kept."""
        digest = hashlib.sha256(f"{self.journal.identity} {tuple(matching)}".encode())
        for layer in student.layers:
            for part in FITTED:
                digest.update(np.ascontiguousarray(getattr(layer, part).weight).tobytes())
        return LayerStore(self.layers_path, digest.hexdigest())

    def forget(self) -> None:
        """Remove what was kept beside the output: the work is done."""
        self.journal.remove()
        LayerStore(self.layers_path, "").remove()

    def _narrows(self, target: PruneTarget) -> bool:
        """Whether a given shape is below the model's.

        Raises:
            InputError: it is above.
        """
        heads, width = layer_shape(self.loaded.weights.layers[0])
        for name, value, full in (
            ("heads", target.heads, heads),
            ("intermediate", target.intermediate, width),
        ):
            if value is not None and value > full:
                raise InputError(f"{name} must be at most {full}, the model's, got {value}")
        return (target.heads or heads, target.intermediate or width) != (heads, width)

    # ---- whole layers --------------------------------------------------------------------------
    def choose_layers(self, drop: int) -> tuple[int, ...]:
        """Leave out one layer after the other, each time the one that costs least."""
        layers = self.loaded.weights.layers
        kept = tuple(range(len(layers)))
        if drop == 0:
            return kept
        expected = self.harm_run.embeddings()
        for _ in range(drop):
            harms = {}
            for i in kept:
                rest = tuple(k for k in kept if k != i)
                weights = replace(self.loaded.weights, layers=tuple(layers[k] for k in rest))

                def measure(weights: EncoderWeights = weights) -> float:
                    return _harm(expected, self.harm_run.embeddings(weights))

                harms[rest] = self.journal.value(f"layers {rest}", measure)
            kept = min(harms, key=lambda rest: harms[rest])
        return kept

    # ---- heads and neurons ---------------------------------------------------------------------
    def _cut(self, student: EncoderWeights, target: PruneTarget) -> EncoderWeights:
        free = target.heads is None and target.intermediate is None
        table, budget = self._budget(student, target) if free else (None, 0.0)
        self.say(f"Recording {self.run.num_texts} texts ({self.run.num_tokens:,} tokens) ...")
        grams: dict[str, Any] = {}

        def add(event: LinearEvent) -> None:
            product = event.hidden.T @ event.hidden
            grams[event.name] = grams.get(event.name, 0.0) + product.astype(np.float64)

        self.run.embeddings(
            student,
            observer=add,
            names=lambda name: name.endswith(("attention_output", ".output")),
        )
        moments = {name: damped(gram) for name, gram in grams.items()}
        self.say("Ordering heads and neurons ...")
        orders = self._orders(student, moments)
        cut = _Cut(student, moments, orders, self.head_dim)
        if table is None:
            for i, layer in enumerate(student.layers):
                heads, width = layer_shape(layer)
                student = cut.apply(student, i, "attention_output", target.heads or heads)
                student = cut.apply(student, i, "output", target.intermediate or width)
            return student
        parts = self._levels(cut, table)
        levels = allocate(parts, budget)
        for i in range(len(student.layers)):
            student = cut.apply(student, i, "attention_output", levels[f"{i} heads"].kept)
            student = cut.apply(student, i, "output", levels[f"{i} width"].kept)
        return student

    def _budget(self, student: EncoderWeights, target: PruneTarget) -> tuple[LatencyTable, float]:
        """The table of costs, and the most that heads and widths may cost together."""
        teacher = self.loaded.weights
        if target.flops is not None:
            table = flops_table(self.run, teacher)
            budget = target.flops * table.total(teacher)
        else:
            run = self.timed_run if target.latency_ms is None else self._usual_text()
            table = self._latency(run, "one" if target.latency_ms is not None else "many")
            whole = table.total(teacher)
            wanted = whole / (target.speedup or 1.0)
            if target.latency_ms is not None:
                wanted = target.latency_ms / 1e3
            budget = wanted - table.base
        least = self._least(student, table)
        if budget < least:
            raise InputError(
                f"{_reach(target, table.total(teacher), table.base + least)}: that is one head and "
                f"{min(self._widths(student.layers[0]))} neurons in each of "
                f"{len(student.layers)} layers; fewer layers go further"
            )
        return table, budget

    def _least(self, student: EncoderWeights, table: LatencyTable) -> float:
        smallest = len(student.layers) * (
            table.heads([1])[0] + table.widths([min(self._widths(student.layers[0]))])[0]
        )
        return smallest

    def _usual_text(self) -> TextRun:
        seqlens = [ids.size for ids in self.run.tokenized.input_ids]
        middle = int(np.argsort(seqlens, kind="stable")[len(seqlens) // 2])
        only = TextRun(self.loaded, ["x"], device=self.run.device)
        only.tokenized = replace(
            self.run.tokenized,
            input_ids=[self.run.tokenized.input_ids[middle]],
            token_type_ids=[self.run.tokenized.token_type_ids[middle]],
        )
        return only

    def _latency(self, run: TextRun, kind: str) -> LatencyTable:
        """Measured once, then from the journal."""
        self.say("Timing layers of several shapes ...")
        layer = self.loaded.weights.layers[0]
        heads = sorted(
            {max(1, round(share * layer.num_heads)) for share in (0, 0.25, 0.5, 0.75, 1)}
        )
        full = layer.intermediate.weight.shape[0]
        widths = sorted(
            {min(full, max(_TILE, round(share * full / _TILE) * _TILE)) for share in _WIDTH_POINTS}
        )
        found: list[LatencyTable] = []

        def measured() -> LatencyTable:
            if not found:
                found.append(measure_latency(run, self.loaded.weights, heads, widths))
            return found[0]

        name = f"seconds {kind}"
        return LatencyTable(
            self.journal.value(f"{name} base", lambda: measured().base),
            {
                n: self.journal.value(f"{name} heads {n}", lambda n=n: measured().attention[n])  # type: ignore[misc]
                for n in heads
            },
            {
                n: self.journal.value(f"{name} width {n}", lambda n=n: measured().feed_forward[n])  # type: ignore[misc]
                for n in widths
            },
        )

    def _widths(self, layer: LayerWeights) -> list[int]:
        """Widths to choose from: multiples of the tile, evenly spaced, and the full one."""
        full = layer.intermediate.weight.shape[0]
        step = max(_TILE, -(-full // _WIDTH_STEPS // _TILE) * _TILE)
        return sorted({*range(min(_TILE, full), full, step), full})

    def _orders(self, student: EncoderWeights, moments: Mapping[str, Any]) -> dict[str, IntArray]:
        """Removal order of every part: heads or neurons, the least important first."""
        orders = {}
        bar = self._bar(2 * len(student.layers), "order")
        for i, layer in enumerate(student.layers):
            for part, group, at_once in (
                ("attention_output", self.head_dim, 1),
                ("output", 1, _AT_ONCE),
            ):
                name = f"layer.{i}.{part}"
                weight = getattr(layer, part).weight
                orders[name] = removal_order(weight, moments[name], group=group, at_once=at_once)
                bar.update()
        bar.close()
        return orders

    def _levels(self, cut: _Cut, table: LatencyTable) -> dict[str, list[Level]]:
        """Costs and harms of every part, the harms measured at the model's output."""
        student = cut.student
        shapes = tuple(map(layer_shape, student.layers))
        self.say("Measuring what each cut costs at the output ...")
        points = len(_HEAD_POINTS) + len(_WIDTH_POINTS) - 2
        bar = self._bar(points * len(student.layers), "measure")
        parts: dict[str, list[Level]] = {}
        walk = LayerWalk(self.harm_run)
        states = walk.start(student)
        expected = walk.embeddings(_onward(walk, states, student.layers))
        for i, layer in enumerate(student.layers):
            width = layer.intermediate.weight.shape[0]
            for part, label, full, choices, shares in (
                ("attention_output", "heads", layer.num_heads, None, _HEAD_POINTS),
                ("output", "width", width, self._widths(layer), _WIDTH_POINTS),
            ):
                choices = choices or list(range(1, full + 1))
                harms = {full: 0.0}
                for share in shares[1:]:
                    kept = max(choices[0], round(share * full))

                    def measure(
                        i: int = i, part: str = part, kept: int = kept, states: States = states
                    ) -> float:
                        layers = cut.apply(student, i, part, kept).layers[i:]
                        return _harm(expected, walk.embeddings(_onward(walk, states, layers)))

                    harms[kept] = self.journal.value(f"{shapes} {i} {part} {kept}", measure)
                    bar.update()
                costs = table.heads(choices) if label == "heads" else table.widths(choices)
                parts[f"{i} {label}"] = [
                    Level(kept, cost, harm)
                    for kept, cost, harm in zip(
                        choices, costs, _smooth(choices, harms), strict=True
                    )
                ]
            states = walk.through(states, layer)
        walk.close()
        bar.close()
        return parts

    def _bar(self, total: int, label: str) -> Any:
        from tqdm import tqdm

        return tqdm(total=total, desc=label, disable=not self.progress, leave=False)


def layer_shape(layer: LayerWeights) -> tuple[int, int]:
    """Heads and feed-forward width."""
    return layer.num_heads, layer.intermediate.weight.shape[0]


def _onward(walk: LayerWalk, states: States, layers: Sequence[LayerWeights]) -> States:
    for layer in layers:
        states = walk.through(states, layer)
    return states


def _reach(target: PruneTarget, whole: float, least: float) -> str:
    """The rule that a target breaks, in its own unit, rounded to what can be reached.

    Args:
        target: how small; out of reach.
        whole: seconds or operations of the original.
        least: of the smallest model there is.
    """
    if target.flops is not None:
        share = math.ceil(least / whole * 1e4) / 1e4
        return f"flops must be at least {share:g}, got {target.flops:g}"
    if target.latency_ms is not None:
        shortest = math.ceil(least * 1e6) / 1e3
        return f"latency_ms must be at least {shortest:g} here, got {target.latency_ms:g}"
    fastest = math.floor(whole / least * 100) / 100
    return f"speedup must be at most {fastest:g} here, got {target.speedup:g}"


def _harm(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """What a cut costs: how far texts move, and how far the order of their similarities does.

    Both grow with the square of a small error, so harms of several cuts add up.
    """
    kept = compare(expected, found)
    return max(0.0, 1.0 - kept.mean_cosine) + max(0.0, 1.0 - kept.spearman)


def _smooth(kept: Sequence[int], harms: Mapping[int, float]) -> list[float]:
    """Harms between measured ones: square roots are close to linear, as errors add up."""
    ordered = sorted(harms)
    worst = np.maximum.accumulate([harms[n] for n in reversed(ordered)])[::-1]
    roots = {n: float(np.sqrt(harm)) for n, harm in zip(ordered, worst, strict=True)}
    return [value**2 for value in interpolate(kept, roots)]


@dataclass(frozen=True, slots=True)
class _Cut:
    """Cuts one part of one layer to a size, the kept columns refitted."""

    student: EncoderWeights
    moments: Mapping[str, Any]
    orders: Mapping[str, IntArray]
    head_dim: int

    def apply(self, weights: EncoderWeights, i: int, part: str, kept: int) -> EncoderWeights:
        name = f"layer.{i}.{part}"
        order = self.orders[name]
        if kept >= order.size:
            return weights
        keep = np.sort(order[order.size - kept :])
        layer = weights.layers[i]
        columns = head_columns(keep, self.head_dim) if part == "attention_output" else keep
        refitted = refit_columns(getattr(layer, part).weight, self.moments[name], columns)
        if part == "attention_output":
            layer = prune_heads(layer, keep.tolist())
            out = replace(layer.attention_output, weight=refitted)
            layer = replace(layer, attention_output=out)
        else:
            layer = prune_feed_forward(layer, keep.tolist())
            layer = replace(layer, output=replace(layer.output, weight=refitted))
        layers = list(weights.layers)
        layers[i] = layer
        return replace(weights, layers=tuple(layers))
