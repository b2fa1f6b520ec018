"""`minibert prune`: heads, neurons and whole layers cut under a target, the rest refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.compress.align import fit_alignment, write_alignment
from minibert.compress.classifier import (
    HeadOptions,
    HeadReport,
    first_tokens,
    fit_head,
    label_numbers,
    read_head,
    report_head,
)
from minibert.compress.cutting import Pruner, Say, layer_shape
from minibert.compress.output import atomic_folder, check_output
from minibert.compress.progress import Journal, identity_of
from minibert.compress.report import Report, report
from minibert.compress.run import TextRun
from minibert.compress.target import PruneTarget
from minibert.compress.texts import split_texts
from minibert.config import config_key
from minibert.errors import InputError
from minibert.loading import LoadedModel, load_model
from minibert.sentence_config import read_modules
from minibert.weights.checkpoint import EncoderWeights
from minibert.weights.classifier_fit import NO_LABEL
from minibert.weights.rewrite import Checkpoint, copy_other_files, write_config

__all__ = ["PruneResult", "PruneTarget", "prune_model", "write_weights"]

_JOURNAL_FORMAT = "2"  # raised where measurements of older runs no longer fit


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What stayed, and what it is worth.

    Attributes:
        report: None where nothing was changed.
        kept_layers: the original's numbers.
        shapes: heads and feed-forward width of each kept layer.
        head: of a classifier whose head was fitted; else None.
    """

    report: Report | None
    kept_layers: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    head: HeadReport | None = None


def prune_model(
    model: Path,
    target_folder: Path,
    target: PruneTarget,
    *,
    texts: Sequence[str] | None = None,
    align: bool = False,
    classify: HeadOptions | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = lambda line: None,
    progress: bool = False,
) -> PruneResult:
    """Write a pruned copy of a model.

    Args:
        model: folder of the original; only read.
        target_folder: folder to be written. While the work lasts, measurements are kept in
            `.<name>.progress.json` beside it, and fitted layers in `.<name>.progress.<layer>.
            safetensors`; a run that was stopped goes on from there.
        target: how small.
        texts: to calibrate with and to report on; the bundled ones when None.
        align: add a last linear map, from the pooled vectors to the original's; not where a
            classifier's head is fitted.
        classify: fit the head of a classifier; None leaves it as it is.
        device: runs the models, as `Engine.from_pretrained`; the linear algebra is NumPy's.
        overwrite: whether an existing model folder may be replaced.
        say: receives a line before each slow step.
        progress: show a bar on standard error.

    Raises:
        InputError: too few texts, a model that is quantised or sparse, a target out of reach, or a
            folder that is taken.
        CheckpointError: the original cannot be loaded.
    """
    check_output(target_folder, model, overwrite=overwrite)
    text_set = split_texts(texts, many=True)
    loaded = load_model(model)
    if loaded.config.quantization is not None:
        raise InputError(
            f"model must hold float weights, '{model}' is quantized: prune or distil its original, "
            "then quantize the result"
        )
    if loaded.config.sparsity is not None:
        raise InputError(
            f"model must be dense, '{model}' is sparse: prune or distil its original, then "
            "sparsify the result"
        )
    count = len(loaded.weights.layers)
    if target.drop_layers >= count:
        raise InputError(f"drop_layers must be below {count}, the layers, got {target.drop_layers}")
    identity = identity_of(loaded.weights.files, text_set.calibration, _JOURNAL_FORMAT)
    journal = Journal(target_folder.with_name(f".{target_folder.name}.progress.json"), identity)
    resumed = len(journal) > 0
    if resumed:
        say(f"Going on from {len(journal)} measurements of an earlier run ...")
    encoder_folder = read_modules(model).encoder_folder
    head = read_head(loaded, encoder_folder) if classify is not None else None
    labels: dict[str, int] = {}
    if classify is not None:
        if head is None and classify.labels is not None:
            raise InputError(f"labels must come with a bert classifier, '{model}' is none")
        if head is not None:
            labels = label_numbers(classify, texts, loaded, len(head.classifier.weight))
    pruner = Pruner(loaded, text_set.calibration, journal, say, device=device, progress=progress)
    try:
        kept, weights = pruner.prune(target)
    except InputError:
        if not resumed:  # a refusal leaves nothing, and takes nothing of an earlier run along
            pruner.forget()
        raise
    except (KeyboardInterrupt, SystemExit):
        if len(journal) > 0:
            say(f"Stopped; the same command goes on from {len(journal)} measurements.")
        raise
    changed = weights is not loaded.weights
    measured = head_report = None
    more: dict[str, NDArray[np.float32]] = {}
    if changed and head is not None and classify is not None:
        say("Fitting the classifier ...")
        known = _numbers(text_set.calibration, labels)
        fitted = fit_head(pruner.run, loaded.weights, weights, head, known, classify)
        more = fitted.tensors()
        held = TextRun(loaded, text_set.reporting, device=device)
        head_report = report_head(
            head.logits(first_tokens(held, loaded.weights)),
            fitted.logits(first_tokens(held, weights)),
            _numbers(text_set.reporting, labels),
        )
    with atomic_folder(target_folder, model, overwrite=overwrite) as folder:
        copy_other_files(model, folder, encoder_folder)
        inside = folder / encoder_folder.relative_to(model)
        write_weights(loaded, weights, kept, encoder_folder, inside, more)
        if changed:
            if align and head is None:
                dense = fit_alignment(pruner.run, loaded.weights, weights)
                write_alignment(loaded, dense, folder)
            say("Measuring what was written ...")
            measured = report(loaded, folder, text_set.reporting, device=device)
    pruner.forget()
    return PruneResult(measured, kept, tuple(map(layer_shape, weights.layers)), head_report)


def write_weights(
    loaded: LoadedModel,
    weights: EncoderWeights,
    kept: Sequence[int],
    source: Path,
    target: Path,
    more: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write a checkpoint with these layers instead of the loaded ones.

    Args:
        loaded: the original.
        weights: what to write; `kept` says which original layer each of its layers stands for.
        kept: numbers of the original's layers.
        source: the original's encoder folder.
        target: an existing folder.
        more: other tensors to replace, by their names in the file.
    """
    checkpoint = Checkpoint.open(source, loaded.config)
    for number, layer in zip(kept, weights.layers, strict=True):
        checkpoint.write_layer(number, loaded.weights.layers[number], layer)
        checkpoint.write_norms(number, loaded.weights.layers[number], layer)
    checkpoint.keep_layers(kept)
    for name, values in more.items():
        checkpoint.write(name, values)
    checkpoint.save(target)
    changes: dict[str, Any] = {}
    if len(kept) != len(loaded.weights.layers):
        changes[config_key(loaded.config.model_type, "num_hidden_layers")] = len(kept)
    if list(map(layer_shape, weights.layers)) != list(map(layer_shape, loaded.weights.layers)) or (
        loaded.config.layer_shapes and changes
    ):
        changes["layer_shapes"] = [list(layer_shape(layer)) for layer in weights.layers]
        changes["pruned_heads"] = {}  # layer_shapes says it all
    write_config(source / "config.json", target / "config.json", changes)


def _numbers(texts: Sequence[str], labels: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([labels.get(text.strip(), NO_LABEL) for text in texts], np.int64)
