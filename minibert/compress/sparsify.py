"""`minibert sparsify`: single weights left out by a pattern, layer by layer, the rest refitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minibert.compress.output import atomic_folder, check_output
from minibert.compress.report import Report, report
from minibert.compress.run import TextRun
from minibert.compress.texts import split_texts
from minibert.compression_config import write_sparsity
from minibert.errors import InputError
from minibert.loading import LoadedModel, load_model
from minibert.ops.recording import StatisticsObserver
from minibert.sentence_config import read_modules
from minibert.weights.checkpoint import EncoderWeights, LayerWeights, LinearWeights
from minibert.weights.masks import GROUP, Mask, kept_of_row
from minibert.weights.rewrite import FUSED_PARTS, Checkpoint, copy_other_files, write_config
from minibert.weights.sparse_stored import Sparsity
from minibert.weights.sparsity import SparsityOptions, sparsify_linear
from minibert.weights.statistics import LinearStatistics

Say = Callable[[str], None]
LINEARS = ("qkv", "attention_output", "intermediate", "output")


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """What leaving weights out cost one linear layer.

    Attributes:
        name: as `prepare_linear` is given it.
        output_error: relative error of its outputs, of the inputs that it gets in the sparse model.
    """

    name: str
    output_error: float


@dataclass(frozen=True, slots=True)
class SparsifyResult:
    """The report, and each linear layer's outcome."""

    report: Report
    layers: tuple[LayerOutcome, ...]


def sparsify_model(
    model: Path,
    target: Path,
    options: SparsityOptions,
    *,
    texts: Sequence[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Say = lambda line: None,
    progress: bool = False,
) -> SparsifyResult:
    """Write a sparse copy of a model.

    Args:
        model: folder of the original; only read.
        target: folder to be written.
        options: which weights go, and how the rest makes up for them.
        texts: to calibrate with and to report on; the bundled ones when None.
        overwrite: whether an existing model folder may be replaced.
        device: runs the models, as `Engine.from_pretrained`.
        say: receives a line before each slow step.
        progress: show a bar on standard error.

    Raises:
        InputError: too few texts, a model that is quantised or sparse already, a pattern or a
            fraction that a matrix cannot have, or a target that is taken.
        CheckpointError: the original cannot be loaded.
    """
    check_output(target, model, overwrite=overwrite)
    text_set = split_texts(texts)
    loaded = load_model(model)
    if loaded.config.quantization is not None:
        raise InputError(
            f"model must hold float weights to be made sparse, '{model}' is quantized: sparsify "
            "its original, then quantize the result"
        )
    if loaded.config.sparsity is not None:
        raise InputError(f"model must be dense, '{model}' is sparse already: use its original")
    _check_widths(loaded.weights, options)
    run = TextRun(loaded, text_set.calibration, device=device)
    say(f"Calibrating with {run.num_texts} texts ({run.num_tokens:,} tokens) ...")
    done = sparsify_layers(run, options, progress=progress)
    encoder_folder = read_modules(model).encoder_folder
    with atomic_folder(target, model, overwrite=overwrite) as folder:
        copy_other_files(model, folder, encoder_folder)
        inside = folder / encoder_folder.relative_to(model)
        _write(loaded, done, options, encoder_folder, inside)
        say("Measuring what was written ...")
        measured = report(loaded, folder, text_set.reporting, device=device)
    return SparsifyResult(measured, done.outcomes)


@dataclass(frozen=True, slots=True)
class SparseWeights:
    """An encoder with weights left out.

    Attributes:
        weights: zeros and all.
        masks: linear layer's name -> what is kept of its (fused) weight.
        outcomes: of each linear layer.
    """

    weights: EncoderWeights
    masks: dict[str, Mask]
    outcomes: tuple[LayerOutcome, ...]


def sparsify_layers(
    run: TextRun, options: SparsityOptions, *, progress: bool = False
) -> SparseWeights:
    """Leave weights out of every layer, from the first to the last.

    A layer's inputs are recorded behind the layers that are sparse already: what they lost, the
    next one's moments know of.

    Args:
        run: calibration texts, and the model.
        options: which weights go, and how the rest makes up for them.
        progress: show a bar on standard error.
    """
    from tqdm import tqdm

    original = run.loaded.weights
    layers = list(original.layers)
    masks: dict[str, Mask] = {}
    outcomes: list[LayerOutcome] = []
    bar = tqdm(total=len(layers) * len(LINEARS), disable=not progress, leave=False)
    for i, layer in enumerate(original.layers):
        observer = StatisticsObserver()
        behind = replace(original, layers=tuple(layers[: i + 1]))
        run.embeddings(behind, observer=observer, names=_starts(f"layer.{i}."))
        parts: dict[str, Any] = {}
        for part in LINEARS:
            name = f"layer.{i}.{part}"
            parts[part], masks[name], error = _sparsify(
                layer, part, observer.statistics[name], options
            )
            outcomes.append(LayerOutcome(name, error))
            bar.update()
        layers[i] = replace(layer, **parts)
    bar.close()
    return SparseWeights(replace(original, layers=tuple(layers)), masks, tuple(outcomes))


def _starts(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _sparsify(
    layer: LayerWeights, part: str, statistics: LinearStatistics, options: SparsityOptions
) -> tuple[LinearWeights, Mask, float]:
    """One linear layer; query, key and value each by itself, as they stand in the file."""
    linear: LinearWeights = getattr(layer, part)
    pieces = len(FUSED_PARTS) if part == "qkv" else 1
    rows = linear.weight.shape[0] // pieces
    found = []
    for k in range(pieces):
        own = slice(k * rows, (k + 1) * rows)
        bias = None if linear.bias is None else linear.bias[own]
        found.append(sparsify_linear(linear.weight[own], bias, statistics, options))
    biases = [one.bias for one in found if one.bias is not None]
    changed = replace(
        linear,
        weight=np.concatenate([one.weight for one in found]),
        bias=np.concatenate(biases) if biases else None,
    )
    mask = np.concatenate([one.mask for one in found])
    return changed, mask, float(np.sqrt(np.mean([one.output_error**2 for one in found])))


def _check_widths(weights: EncoderWeights, options: SparsityOptions) -> None:
    """Refuse a layer that the pattern does not fit, or of which the fraction is not one input."""
    for i, layer in enumerate(weights.layers):
        for part in LINEARS:
            width = getattr(layer, part).weight.shape[1]
            if options.pattern == "2:4":
                if width % GROUP:
                    raise InputError(
                        f"layer.{i}.{part} must have a multiple of {GROUP} inputs for pattern 2:4, "
                        f"got {width}"
                    )
            elif kept_of_row(width, options.fraction) == width:
                enough = math.ceil(1e4 / width) / 1e4
                raise InputError(
                    f"sparsity must leave out at least one of the {width} inputs of "
                    f"layer.{i}.{part}, got {options.fraction:g}, which is none; {enough:g} is one"
                )


def _write(
    loaded: LoadedModel, done: SparseWeights, options: SparsityOptions, source: Path, target: Path
) -> None:
    sparsity = Sparsity(options.pattern, options.fraction)
    checkpoint = Checkpoint.open(source, loaded.config)
    checkpoint.sparsity = sparsity
    for i, (old, new) in enumerate(zip(loaded.weights.layers, done.weights.layers, strict=True)):
        checkpoint.write_layer(i, old, new)
        for part in LINEARS:
            mask = done.masks[f"layer.{i}.{part}"]
            files = FUSED_PARTS if part == "qkv" else (part,)
            for file_part, own in zip(files, np.split(mask, len(files)), strict=True):
                checkpoint.masks[checkpoint.layer_name(i, file_part)] = own
    checkpoint.changed = True
    checkpoint.save(target)
    write_config(source / "config.json", target / "config.json", write_sparsity(sparsity))
