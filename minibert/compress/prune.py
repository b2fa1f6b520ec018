"""`minibert prune`: heads, neurons and whole layers cut under a target, the rest refitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minibert.compress.align import fit_alignment, write_alignment
from minibert.compress.latency import LatencyTable, flops_table, measure_latency
from minibert.compress.output import atomic_folder, check_output
from minibert.compress.progress import Journal, identity_of
from minibert.compress.refit import counterparts, refit, take_norms
from minibert.compress.report import Report, report
from minibert.compress.run import TextRun
from minibert.compress.texts import split_texts
from minibert.config import config_key
from minibert.errors import InputError
from minibert.fidelity import compare
from minibert.loading import LoadedModel, load_model
from minibert.ops.recording import StatisticsObserver
from minibert.sentence_config import read_modules
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
from minibert.weights.rewrite import Checkpoint, copy_other_files, write_config

Say = Callable[[str], None]
_WIDTH_STEPS = 32  # widths to choose from, per layer
_TILE = 16  # columns that the kernels compute together
_HEAD_POINTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of heads at which the harm is measured
_WIDTH_POINTS = (1.0, 0.75, 0.5, 0.25, 0.0)
_HARM_TEXTS = 48
_TIMED_TEXTS = 24
_JOURNAL_FORMAT = "1"  # raised where measurements of older runs no longer fit
_AT_ONCE = 16  # neurons removed before the others are judged again


@dataclass(frozen=True, slots=True)
class PruneTarget:
    """How small, by exactly one measure; without any, nothing is pruned.

    Attributes:
        speedup: time of the original over that of the result, on this machine.
        flops: share of the operations that may remain.
        latency_ms: milliseconds of one text of usual length, alone, on this machine.
        drop_layers: whole layers to drop first; the least harmful ones.
    """

    speedup: float | None = None
    flops: float | None = None
    latency_ms: float | None = None
    drop_layers: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: naming the target and its rule.
        """
        given = [v for v in (self.speedup, self.flops, self.latency_ms) if v is not None]
        if len(given) > 1:
            raise InputError("the target must be one of speedup, flops and latency_ms, got several")
        if self.speedup is not None and not self.speedup >= 1.0:
            raise InputError(f"speedup must be at least 1, got {self.speedup}")
        if self.flops is not None and not 0.0 < self.flops <= 1.0:
            raise InputError(f"flops must be above 0 and at most 1, got {self.flops}")
        if self.latency_ms is not None and not self.latency_ms > 0.0:
            raise InputError(f"latency_ms must be above 0, got {self.latency_ms}")
        if self.drop_layers < 0:
            raise InputError(f"drop_layers must be at least 0, got {self.drop_layers}")


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What stayed, and what it is worth.

    Attributes:
        report: None where nothing was changed.
        kept_layers: the original's numbers.
        shapes: heads and feed-forward width of each kept layer.
    """

    report: Report | None
    kept_layers: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]


def prune_model(
    model: Path,
    target_folder: Path,
    target: PruneTarget,
    *,
    texts: Sequence[str] | None = None,
    align: bool = False,
    overwrite: bool = False,
    say: Say = lambda line: None,
    progress: bool = False,
) -> PruneResult:
    """Write a pruned copy of a model.

    Args:
        model: folder of the original; only read.
        target_folder: folder to be written. While the work lasts, measurements are kept in
            `.<name>.progress.json` beside it; a run that was stopped goes on from there.
        target: how small.
        texts: to calibrate with and to report on; the bundled ones when None.
        align: add a last linear map, from the pooled vectors to the original's.
        overwrite: whether an existing model folder may be replaced.
        say: receives a line before each slow step.
        progress: show a bar on standard error.

    Raises:
        InputError: too few texts, a model that is quantised or sparse, a target out of reach, or a
            folder that is taken.
        CheckpointError: the original cannot be loaded.
    """
    check_output(target_folder, model, overwrite=overwrite)
    text_set = split_texts(texts)
    loaded = load_model(model)
    if loaded.config.quantization is not None:
        raise InputError(
            f"model must hold float weights to be pruned, '{model}' is quantized: prune its "
            "original, then quantize the result"
        )
    if loaded.config.sparsity is not None:
        raise InputError(
            f"model must be dense to be pruned, '{model}' is sparse: prune its original, then "
            "sparsify the result"
        )
    count = len(loaded.weights.layers)
    if target.drop_layers >= count:
        raise InputError(f"drop_layers must be below {count}, the layers, got {target.drop_layers}")
    identity = identity_of(loaded.weights.files, text_set.calibration, _JOURNAL_FORMAT)
    journal = Journal(target_folder.with_name(f".{target_folder.name}.progress.json"), identity)
    if len(journal):
        say(f"Going on from {len(journal)} measurements of an earlier run ...")
    pruner = Pruner(loaded, text_set.calibration, journal, say, progress=progress)
    kept, weights = pruner.prune(target)
    encoder_folder = read_modules(model).encoder_folder
    measured = None
    with atomic_folder(target_folder, model, overwrite=overwrite) as folder:
        copy_other_files(model, folder, encoder_folder)
        inside = folder / encoder_folder.relative_to(model)
        write_weights(loaded, weights, kept, encoder_folder, inside)
        if weights is not loaded.weights:
            if align:
                dense = fit_alignment(pruner.run, loaded.weights, weights)
                write_alignment(loaded, dense, folder)
            say("Measuring what was written ...")
            measured = report(loaded, folder, text_set.reporting)
    journal.remove()
    return PruneResult(measured, kept, tuple(map(_shape, weights.layers)))


def write_weights(
    loaded: LoadedModel,
    weights: EncoderWeights,
    kept: Sequence[int],
    source: Path,
    target: Path,
) -> None:
    """Write a checkpoint with these layers instead of the loaded ones.

    Args:
        loaded: the original.
        weights: what to write; `kept` says which original layer each of its layers stands for.
        kept: numbers of the original's layers.
        source: the original's encoder folder.
        target: an existing folder.
    """
    checkpoint = Checkpoint.open(source, loaded.config)
    for number, layer in zip(kept, weights.layers, strict=True):
        checkpoint.write_layer(number, loaded.weights.layers[number], layer)
        checkpoint.write_norms(number, loaded.weights.layers[number], layer)
    checkpoint.keep_layers(kept)
    checkpoint.save(target)
    changes: dict[str, Any] = {}
    if len(kept) != len(loaded.weights.layers):
        changes[config_key(loaded.config.model_type, "num_hidden_layers")] = len(kept)
    if list(map(_shape, weights.layers)) != list(map(_shape, loaded.weights.layers)) or (
        loaded.config.layer_shapes and changes
    ):
        changes["layer_shapes"] = [list(_shape(layer)) for layer in weights.layers]
        changes["pruned_heads"] = {}  # layer_shapes says it all
    write_config(source / "config.json", target / "config.json", changes)


def _shape(layer: LayerWeights) -> tuple[int, int]:
    return layer.num_heads, layer.intermediate.weight.shape[0]


class Pruner:
    """Measures what cutting costs and saves, and cuts."""

    def __init__(
        self,
        loaded: LoadedModel,
        texts: Sequence[str],
        journal: Journal,
        say: Say = lambda line: None,
        *,
        progress: bool = False,
    ) -> None:
        """Hold the model and the calibration texts; nothing runs yet."""
        self.loaded = loaded
        self.journal = journal
        self.say = say
        self.progress = progress
        self.run = TextRun(loaded, texts)
        self.harm_run = TextRun(loaded, texts[:: max(1, len(texts) // _HARM_TEXTS)])
        self.timed_run = TextRun(loaded, texts[:: max(1, len(texts) // _TIMED_TEXTS)])
        self.head_dim = loaded.config.head_dim

    def prune(self, target: PruneTarget) -> tuple[tuple[int, ...], EncoderWeights]:
        """Cut and refit.

        Returns:
            Numbers of the kept layers, and the weights; the loaded ones where nothing was asked.
        """
        teacher = self.loaded.weights
        everything = tuple(range(len(teacher.layers)))
        untouched = target.speedup in (None, 1.0) and target.flops in (None, 1.0)
        if untouched and target.latency_ms is None and target.drop_layers == 0:
            return everything, teacher
        kept = self.choose_layers(target.drop_layers)
        student = replace(teacher, layers=tuple(teacher.layers[i] for i in kept))
        if not untouched or target.latency_ms is not None:
            student = self._cut(student, target)
        self.say("Refitting what is left ...")
        bar = self._bar(len(kept), "refit")
        matching = counterparts(kept, len(teacher.layers))
        student = take_norms(student, teacher, matching)
        student = refit(self.run, teacher, student, matching=matching, step=bar.update)
        bar.close()
        return kept, student

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
                    return 1.0 - compare(expected, self.harm_run.embeddings(weights)).mean_cosine

                harms[rest] = self.journal.value(f"layers {rest}", measure)
            kept = min(harms, key=lambda rest: harms[rest])
        return kept

    # ---- heads and neurons ---------------------------------------------------------------------
    def _cut(self, student: EncoderWeights, target: PruneTarget) -> EncoderWeights:
        self.say(f"Recording {self.run.num_texts} texts ({self.run.num_tokens:,} tokens) ...")
        observer = StatisticsObserver()
        self.run.embeddings(
            student,
            observer=observer,
            names=lambda name: name.endswith(("attention_output", ".output")),
        )
        moments = {name: damped(s.gram) for name, s in observer.statistics.items()}
        del observer
        table, budget = self._budget(student, target)
        self.say("Ordering heads and neurons ...")
        orders = self._orders(student, moments)
        cut = _Cut(student, moments, orders, self.head_dim)
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
            whole = table.total(teacher)
            reachable = whole / (table.base + least)
            raise InputError(
                f"the target must be at most {reachable:.2f} times smaller or faster than the "
                f"original, which is one head and {_TILE} neurons in each of "
                f"{len(student.layers)} layers; drop_layers goes further"
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
        only = TextRun(self.loaded, ["x"])
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
        expected = self.harm_run.embeddings(student)
        shapes = tuple(map(_shape, student.layers))
        self.say("Measuring what each cut costs at the output ...")
        points = len(_HEAD_POINTS) + len(_WIDTH_POINTS) - 2
        bar = self._bar(points * len(student.layers), "measure")
        parts: dict[str, list[Level]] = {}
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

                    def measure(i: int = i, part: str = part, kept: int = kept) -> float:
                        weights = cut.apply(student, i, part, kept)
                        found = self.harm_run.embeddings(weights)
                        return max(0.0, 1.0 - compare(expected, found).mean_cosine)

                    harms[kept] = self.journal.value(f"{shapes} {i} {part} {kept}", measure)
                    bar.update()
                costs = table.heads(choices) if label == "heads" else table.widths(choices)
                parts[f"{i} {label}"] = [
                    Level(kept, cost, harm)
                    for kept, cost, harm in zip(
                        choices, costs, _smooth(choices, harms), strict=True
                    )
                ]
        bar.close()
        return parts

    def _bar(self, total: int, label: str) -> Any:
        from tqdm import tqdm

        return tqdm(total=total, desc=label, disable=not self.progress, leave=False)


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
