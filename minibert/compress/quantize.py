"""`minibert quantize`: int8 or int4 weights, layers that do not bear it left in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.compress.gate import leave_layers_alone
from minibert.compress.output import atomic_folder, check_output
from minibert.compress.report import Report, report
from minibert.compress.run import TextRun
from minibert.compress.texts import split_texts
from minibert.errors import InputError
from minibert.fidelity import compare
from minibert.loading import LoadedModel, load_model
from minibert.ops.recording import StatisticsObserver
from minibert.sentence_config import read_modules
from minibert.weights.calibrate import METHODS, activation_range
from minibert.weights.checkpoint import EncoderWeights, LayerWeights, LinearWeights
from minibert.weights.quantize import (
    QuantizedMatrix,
    Rounding,
    migration_scales,
    output_error,
    quantize_matrix,
)
from minibert.weights.rewrite import Checkpoint, copy_other_files, write_config
from minibert.weights.statistics import LinearStatistics

LINEARS = ("qkv", "attention_output", "intermediate", "output")
_FILE_PARTS = {"qkv": ("query", "key", "value")}
Say = Callable[[str], None]

MIN_COSINE = 0.9996
"""Mean cosine to the original that the gate keeps, where nothing else is asked for."""
STATIC_MIN_COSINE = 0.99
"""The same for fixed ranges, which no text set keeps as close."""
_MANY_TEXTS = 96


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How to quantise.

    Attributes:
        bits: of a weight, 8 or 4; 4 is for files and memory traffic, it computes in float.
        embedding_bits: of the embedding tables, 8 or 32 (as they are).
        rounding: "second-order" corrects a column's rounding in the columns after it, "nearest"
            does not.
        min_cosine: mean cosine to the original, over the calibration texts, that must be kept;
            layers are left in float, worst first, until it is. None leaves none.
        migrate: move outliers of the attention's context into the next weights.
        static: fix the range of each layer's inputs beforehand, by one of
            `weights.calibrate.METHODS`; None leaves each token its own.
    """

    bits: int = 8
    embedding_bits: int = 8
    rounding: Rounding = "second-order"
    min_cosine: float | None = MIN_COSINE
    migrate: bool = False
    static: str | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: naming the option and its rule.
        """
        if self.bits not in (4, 8):
            raise InputError(f"bits must be 8 or 4, got {self.bits!r}")
        if self.embedding_bits not in (8, 32):
            raise InputError(f"embedding_bits must be 8 or 32, got {self.embedding_bits!r}")
        if self.rounding not in ("nearest", "second-order"):
            raise InputError(f"rounding must be nearest or second-order, got {self.rounding!r}")
        if self.min_cosine is not None and not 0.0 < self.min_cosine <= 1.0:
            raise InputError(f"min_cosine must be above 0 and at most 1, got {self.min_cosine}")
        if self.static is None:
            return
        if self.static not in METHODS:
            raise InputError(f"static must be one of {', '.join(METHODS)}, got {self.static!r}")
        if self.bits != 8:
            raise InputError(f"static must come with 8 bits, got {self.bits}, which run in float")
        if self.migrate:
            raise InputError("static must not come with migrate, which changes what was measured")


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """What became of one linear layer.

    Attributes:
        name: as `prepare_linear` is given it.
        output_error: relative error of its outputs through its weights alone.
        state: "int8", "int4"; "int8, each token's own range" in a model of fixed ones; "int8
            weights, float activations"; or "float".
    """

    name: str
    output_error: float
    state: str


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """The report, and each layer's outcome in the order of the layers."""

    report: Report
    layers: tuple[LayerOutcome, ...]


def quantize_model(
    model: Path,
    target: Path,
    *,
    options: QuantizeOptions | None = None,
    texts: Sequence[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> QuantizeResult:
    """Write a quantised copy of a model.

    Args:
        model: folder of the original; only read.
        target: folder to be written.
        options: how; the defaults when None.
        texts: to calibrate with and to report on; the bundled ones when None.
        device: runs the models, as `Engine.from_pretrained`.
        overwrite: whether an existing model folder may be replaced.
        say: receives a line before each slow step.

    Raises:
        InputError: too few texts, a model that is quantised already, 4 bits for a sparse model, a
            target that is taken, a min_cosine that not even float layers reach, or inputs of a
            layer that are all zero and have no range.
        CheckpointError: the original cannot be loaded.
    """
    options = options or QuantizeOptions()
    check_output(target, model, overwrite=overwrite)
    text_set = split_texts(texts)
    loaded = load_model(model)
    if loaded.config.quantization is not None:
        raise InputError(
            f"model must hold float weights, '{model}' is quantized already: use its original"
        )
    if loaded.config.sparsity is not None and options.bits != 8:
        raise InputError(f"bits must be 8 for a sparse model, got {options.bits}")
    run = TextRun(loaded, text_set.calibration, device=device)
    say(f"Recording {run.num_texts} texts ({run.num_tokens:,} tokens) of {text_set.origin} ...")
    observer = StatisticsObserver()
    expected = run.embeddings(observer=observer)
    work = _Work(loaded, options, observer.statistics, run, expected, text_set.calibration)
    say(f"Quantizing {len(work.names)} layers to int{options.bits} ...")
    work.quantize()
    work.gate(say)
    encoder_folder = read_modules(model).encoder_folder
    with atomic_folder(target, model, overwrite=overwrite) as folder:
        copy_other_files(model, folder, encoder_folder)
        inside = folder / encoder_folder.relative_to(model)
        work.write(encoder_folder, inside)
        say("Measuring what was written ...")
        measured = report(loaded, folder, text_set.reporting, device=device)
    return QuantizeResult(measured, work.outcomes())


class _Work:
    """The matrices of one model, and which of them are used."""

    def __init__(
        self,
        loaded: LoadedModel,
        options: QuantizeOptions,
        statistics: Mapping[str, LinearStatistics],
        run: TextRun,
        expected: NDArray[np.float32],
        texts: Sequence[str],
    ) -> None:
        self.loaded = loaded
        self.options = options
        self.statistics = statistics
        self.run = run
        self.expected = expected
        self.every = 3 if len(texts) >= _MANY_TEXTS else 1
        self.sample = TextRun(loaded, texts[:: self.every], device=run.device)
        self.original = loaded.weights
        self.scales: dict[int, NDArray[np.float32]] = {}
        if options.migrate:
            self._migrate()
        self.names = [
            f"layer.{i}.{part}" for i in range(len(self.original.layers)) for part in LINEARS
        ]
        self.matrices: dict[str, QuantizedMatrix] = {}
        self.tables: dict[str, QuantizedMatrix] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        if options.static is not None:
            self.ranges = {name: self._range(name, options.static) for name in self.names}
        self.own_range: set[str] = set()  # of a model of fixed ones
        self.weights_only: set[str] = set()  # int8 in the file, float when it runs
        self.untouched: set[str] = set()  # float in the file

    def _migrate(self) -> None:
        """Divide the values of attention by powers of two, and multiply where they arrive."""
        layers = []
        for i, layer in enumerate(self.original.layers):
            name = f"layer.{i}.attention_output"
            found = self.statistics[name]
            scales = migration_scales(found.absmax, layer.attention_output.weight)
            self.scales[i] = scales
            layers.append(migrate_layer(layer, scales))
            inverse = (1.0 / scales).astype(np.float64)
            found.gram *= inverse[:, None] * inverse[None, :]
            found.total *= inverse
            found.low *= inverse
            found.high *= inverse
        self.original = replace(self.original, layers=tuple(layers))

    def _range(self, name: str, method: str) -> tuple[float, float]:
        low, high = (float(np.float32(x)) for x in activation_range(self.statistics[name], method))
        if not low < high:
            raise InputError(f"texts must give {name} inputs other than 0 to fix their range")
        return low, high

    def quantize(self) -> None:
        for name in self.names:
            weight = _linear(self.original, name).weight
            gram = self.statistics[name].gram if self.options.rounding == "second-order" else None
            # What `minibert sparsify` left out stays out: rounding moves no error there.
            keep = None if self.loaded.config.sparsity is None else weight != 0
            self.matrices[name] = quantize_matrix(
                weight, bits=self.options.bits, gram=gram, keep=keep
            )
        if self.options.embedding_bits == 8:
            tables = {
                "word": self.original.word,
                "position": self.original.position,
                "token_type": self.original.token_type,
            }
            for part, table in tables.items():
                if table is not None:
                    self.tables[part] = quantize_matrix(table)

    def weights(self) -> EncoderWeights:
        """The model as it stands."""
        layers = []
        for i, layer in enumerate(self.original.layers):
            parts = {}
            for part in LINEARS:
                name, linear = f"layer.{i}.{part}", getattr(layer, part)
                if name not in self.untouched:
                    runs_as_int8 = self.options.bits == 8 and name not in self.weights_only
                    linear = replace(
                        linear,
                        weight=self.matrices[name].values,
                        quantized=runs_as_int8,
                        input_range=self.fixed_range(name),
                    )
                parts[part] = linear
            layers.append(replace(layer, **parts))
        original = self.original
        word, position, token_type = (
            self.tables[part].values if part in self.tables else getattr(original, part)
            for part in ("word", "position", "token_type")
        )
        return replace(
            original, layers=tuple(layers), word=word, position=position, token_type=token_type
        )

    def fixed_range(self, name: str) -> tuple[float, float] | None:
        if name in self.own_range | self.weights_only | self.untouched:
            return None
        return self.ranges.get(name)

    def cosine(self) -> float:
        found = self.run.embeddings(self.weights(), dtype=None)
        return compare(self.expected, found).mean_cosine

    def quick_cosine(self) -> float:
        """Of every third text, where there are many: enough to tell layers from one another."""
        found = self.sample.embeddings(self.weights(), dtype=None)
        return compare(self.expected[:: self.every], found).mean_cosine

    def gate(self, say: Say) -> None:
        """Leave layers their own ranges or in float, the worst first, until min_cosine is kept."""
        wanted = self.options.min_cosine
        if wanted is None:
            return
        stages = [self.untouched] if self.options.bits == 4 else [self.weights_only, self.untouched]
        if self.ranges:
            stages.insert(0, self.own_range)
        if not leave_layers_alone(self.names, stages, wanted, self.cosine, self.quick_cosine, say):
            raise InputError(
                f"min_cosine must be at most {self.cosine():.6f}, which this model keeps with int8 "
                f"embeddings and all layers in float, got {wanted}: try --embedding-bits 32"
            )

    def outcomes(self) -> tuple[LayerOutcome, ...]:
        found = []
        for name in self.names:
            state = f"int{self.options.bits}"
            if self.ranges and name in self.own_range:
                state = "int8, each token's own range"
            if name in self.untouched:
                state = "float"
            elif name in self.weights_only:
                state = "int8 weights, float activations"
            weight = _linear(self.original, name).weight
            changed = weight if name in self.untouched else self.matrices[name].values
            found.append(
                LayerOutcome(name, output_error(weight, changed, self.statistics[name]), state)
            )
        return tuple(found)

    def write(self, source: Path, target: Path) -> None:
        checkpoint = Checkpoint.open(source, self.loaded.config)
        for name in self.names:
            self._write_layer(checkpoint, name)
        for part, matrix in self.tables.items():
            full = checkpoint.prefix + checkpoint.table.embeddings[part]
            _put(checkpoint, full, matrix.weight_q, matrix.weight_scale)
        checkpoint.save(target)
        in_float = self.weights_only | self.untouched
        found: dict[str, object] = {
            "quant_method": "minibert",
            "weight_bits": self.options.bits,
            "embedding_bits": self.options.embedding_bits,
            "float_layers": [name for name in self.names if name in in_float],
        }
        if self.ranges:
            found["static"] = self.options.static
            found["dynamic_layers"] = [n for n in self.names if n in self.own_range - in_float]
        write_config(source / "config.json", target / "config.json", {"quantization_config": found})

    def _write_layer(self, checkpoint: Checkpoint, name: str) -> None:
        i, part = _place(name)
        files = _FILE_PARTS.get(part, (part,))
        linear = _linear(self.original, name)
        matrix = self.matrices[name]
        rows = linear.weight.shape[0] // len(files)
        for k, file_part in enumerate(files):
            own = slice(k * rows, (k + 1) * rows)
            full = checkpoint.layer_name(i, file_part)
            if self.scales and part in ("qkv", "attention_output"):
                checkpoint.write(full, linear.weight[own])
                if linear.bias is not None:
                    checkpoint.write(checkpoint.layer_name(i, file_part, "bias"), linear.bias[own])
            if name not in self.untouched:
                fixed = self.fixed_range(name)
                _put(checkpoint, full, matrix.weight_q[own], matrix.weight_scale[own], fixed)


def migrate_layer(layer: LayerWeights, scales: NDArray[np.float32]) -> LayerWeights:
    """Divide each value feature by its scale and multiply it where it arrives; exact.

    Args:
        layer: of any shape.
        scales: (num_heads * head_dim,) powers of two.
    """
    weight, bias = layer.qkv.weight.copy(), layer.qkv.bias
    first = 2 * scales.size  # values follow queries and keys
    weight[first:] /= scales[:, None]
    if bias is not None:
        bias = bias.copy()
        bias[first:] /= scales
    out = layer.attention_output
    return replace(
        layer,
        qkv=replace(layer.qkv, weight=weight, bias=bias),
        attention_output=replace(out, weight=out.weight * scales),
    )


def _put(
    checkpoint: Checkpoint,
    full: str,
    weight_q: NDArray[np.int8],
    scale: NDArray[np.float32],
    input_range: tuple[float, float] | None = None,
) -> None:
    parts: dict[str, NDArray[Any]] = {f"{full}_q": weight_q, f"{full}_scale": scale}
    if input_range is not None:
        parts[f"{full.removesuffix('weight')}input_range"] = np.array(input_range, np.float32)
    checkpoint.replace(full, parts)


def _place(name: str) -> tuple[int, str]:
    _, number, part = name.split(".")
    return int(number), part


def _linear(weights: EncoderWeights, name: str) -> LinearWeights:
    i, part = _place(name)
    found: LinearWeights = getattr(weights.layers[i], part)
    return found
