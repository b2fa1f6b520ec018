"""From a checkpoint folder to EncoderWeights: the encoder's parameters as float32 arrays.

Each tensor of the files is consumed once, or listed as deliberately unused, or refused. Query, key
and value are fused into one matrix at load. A layer's own width (heads kept, feed-forward size) is
read from its tensors, so layers need not be alike.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibert.config import EncoderConfig
from minibert.errors import WeightsError
from minibert.weights.encoder import (
    EncoderWeights,
    Float32,
    LayerSource,
    LayerWeights,
    LinearWeights,
    NormWeights,
)
from minibert.weights.masks import Mask
from minibert.weights.names import LEGACY_NORM_NAMES, NAME_TABLES, NameTable
from minibert.weights.sparse_stored import expand_all
from minibert.weights.stored import (
    check_presence,
    check_quantized,
    read_input_range,
    read_quantized,
)
from minibert.weights.tensors import (
    FLOAT_DTYPES,
    TensorFiles,
    open_tensors,
    release,
    to_float32,
)

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background

_PART_BYTES = 4 << 20  # of a tensor that is checked, and let go of, part by part
_FUSED = ("query", "key", "value")  # of a layer: one input, one matrix

__all__ = [
    "EncoderWeights",
    "LayerWeights",
    "LinearWeights",
    "NormWeights",
    "load_encoder",
    "require_finite",
]


def load_encoder(
    folder: Path,
    config: EncoderConfig,
    *,
    layer_by_layer: bool = False,
    background: Background | None = None,
) -> EncoderWeights:
    """Read the encoder of a checkpoint folder.

    Args:
        folder: holds the safetensors files.
        config: from the same folder's config.json.
        layer_by_layer: give the layers' shapes only; `EncoderWeights.layer` reads a layer's values
            when a device lays them out, so that no more than one layer is held as float32, and
            each page of the files is read once.
        background: looks whether all values are finite, which its `wait` tells; where they are not,
            a call without it says which. It also joins matrices: a layer's values are there for
            what it is told later, and for others after `wait`. None does all that at once.

    Raises:
        WeightsError: a tensor is missing, misshapen, of an unsupported dtype, not finite, or
            neither used nor known to be unused; or `open_tensors` or `expand_all` refuses the
            files.
    """
    tensors, masks = expand_all(open_tensors(folder), config.sparsity)
    return _Reader(tensors, masks, NAME_TABLES[config.model_type], config, background).read(
        layer_by_layer
    )


class _Reader:
    """Takes each tensor once and keeps account of what was taken."""

    def __init__(
        self,
        tensors: TensorFiles,
        masks: dict[str, Mask],
        table: NameTable,
        config: EncoderConfig,
        background: Background | None,
    ) -> None:
        self.tensors = tensors
        self.masks = masks
        self.table = table
        self.config = config
        self.background = background
        self.where = tensors.files[0].parent  # for messages
        self.taken: set[str] = set()
        self.dtypes: set[str] = set()
        self.mapped: list[NDArray[Any]] = []  # read, and not yet released
        self.layer_by_layer = False
        self.with_values = True
        probe = table.embeddings["word"]
        found = [p for p in table.prefixes if {p + probe, f"{p}{probe}_q"} & set(tensors)]
        if len(found) != 1:
            named = " or ".join(p + probe for p in table.prefixes)
            state = "neither is there" if not found else "both are"
            raise WeightsError(f"{tensors.files[0]} must hold one of {named}, {state}")
        self.prefix = found[0]

    def read(self, layer_by_layer: bool) -> EncoderWeights:
        config, names = self.config, self.table.embeddings
        width = config.embedding_size
        token_type = (
            self.matrix(names["token_type"], (config.type_vocab_size, width))[0]
            if "token_type" in names and config.type_vocab_size > 0
            else None
        )
        projection = None
        if self.table.projection and width != config.hidden_size:
            projection = self.linear(self.table.projection, config.hidden_size, width)
        weights = EncoderWeights(
            word=self.matrix(names["word"], (config.vocab_size, width))[0],
            position=self.matrix(names["position"], (config.max_position_embeddings, width))[0],
            token_type=token_type,
            embedding_norm=self.norm(names["norm"], width),
            projection=projection,
            layers=self.layers(layer_by_layer),
            unused=self.leftover(),
            dtypes=tuple(sorted(self.dtypes)),
            files=self.tensors.files,
            source=LayerSource(self.layer, self.mapped, self.background)
            if layer_by_layer
            else None,
        )
        self.layer_by_layer = layer_by_layer
        return weights

    def layers(self, shapes_only: bool) -> tuple[LayerWeights, ...]:
        self.with_values = not shapes_only
        layers = tuple(self.layer(i) for i in range(self.config.num_hidden_layers))
        self.with_values = True
        return layers

    def layer(self, i: int) -> LayerWeights:
        config = self.config
        names = {key: name.format(i=i) for key, name in self.table.layer.items()}
        query_rows = self.rows(names["query"])
        num_heads, rest = divmod(query_rows, config.head_dim)
        expected = config.num_attention_heads - len(config.pruned_heads.get(i, ()))
        if rest or num_heads < 1 or num_heads > config.num_attention_heads:
            raise WeightsError(
                f"{self.where}: {self.prefix}{names['query']}.weight must have a multiple of "
                f"head_dim = {config.head_dim} rows, at most {config.hidden_size}, got {query_rows}"
            )
        if config.pruned_heads and num_heads != expected:
            raise WeightsError(
                f"{self.where}: layer {i} must have {expected} heads by pruned_heads, "
                f"its query has {num_heads}"
            )
        if config.layer_shapes and num_heads != config.layer_shapes[i][0]:
            raise WeightsError(
                f"{self.where}: layer {i} must have {config.layer_shapes[i][0]} heads by "
                f"layer_shapes, its query has {num_heads}"
            )
        inner = num_heads * config.head_dim
        quantization = config.quantization or {}
        float_layers = quantization.get("float_layers", ())
        dynamic_layers = quantization.get("dynamic_layers", ())

        def linear(part: str, out_features: int, in_features: int, label: str = "") -> Any:
            label = f"layer.{i}.{label or part}"  # the name that `prepare_linear` is given
            weights = self.linear(names[part], out_features, in_features)
            self.check_sparse(names[part])
            quantized = weights.quantized and label not in float_layers
            static = quantized and "static" in quantization and label not in dynamic_layers
            input_range = self.input_range(names[part], label, static)
            return replace(weights, quantized=quantized, input_range=input_range)

        parts = [linear(part, inner, config.hidden_size, "qkv") for part in _FUSED]
        if len({part.input_range for part in parts}) != 1:
            raise WeightsError(
                f"{self.where}: input_range must be one for {', '.join(_FUSED)} of layer {i}"
            )
        intermediate_size = self.rows(names["intermediate"])
        if not 1 <= intermediate_size <= config.intermediate_size:
            raise WeightsError(
                f"{self.where}: {self.prefix}{names['intermediate']}.weight must have 1 to "
                f"{config.intermediate_size} rows, got {intermediate_size}"
            )
        if config.layer_shapes and intermediate_size != config.layer_shapes[i][1]:
            raise WeightsError(
                f"{self.where}: layer {i} must have intermediate_size {config.layer_shapes[i][1]} "
                f"by layer_shapes, got {intermediate_size}"
            )
        return LayerWeights(
            num_heads=num_heads,
            qkv=_fuse(parts, self.background),
            attention_output=linear("attention_output", config.hidden_size, inner),
            attention_norm=self.norm(names["attention_norm"], config.hidden_size),
            intermediate=linear("intermediate", intermediate_size, config.hidden_size),
            output=linear("output", config.hidden_size, intermediate_size),
            output_norm=self.norm(names["output_norm"], config.hidden_size),
        )

    def input_range(self, name: str, label: str, expected: bool) -> tuple[float, float] | None:
        full = f"{self.prefix}{name}.input_range"
        check_presence(self.where, full, full in self.tensors, expected, label)
        if not expected:
            return None
        self.taken.add(full)
        return read_input_range(full, self.tensors[full])

    def check_sparse(self, name: str) -> None:
        """Refuse a dense matrix in a layer that config.json calls sparse."""
        full = f"{self.prefix}{name}.weight"
        if self.config.sparsity is not None and not {full, f"{full}_q"} & set(self.masks):
            raise WeightsError(
                f"{self.where}: {full} must be stored as {full}_kept and {full}_index by "
                "sparsity_config, it is dense"
            )

    def rows(self, name: str) -> int:
        quantized = f"{self.prefix}{name}.weight_q"
        full = quantized if quantized in self.tensors else self.find(f"{name}.weight")
        shape = self.tensors[full].data.shape
        if len(shape) != 2:
            raise WeightsError(
                f"{self.tensors[full].file}: {full} must be two-dimensional, got shape {shape}"
            )
        return int(shape[0])

    def linear(self, name: str, out_features: int, in_features: int) -> LinearWeights:
        bias = self.array(f"{name}.bias", (out_features,))
        weight, bits = self.matrix(f"{name}.weight", (out_features, in_features))
        return LinearWeights(weight, bias, quantized=bits == 8)

    def matrix(self, name: str, shape: tuple[int, int]) -> tuple[Float32, int]:
        """A matrix and the bits of a value in the file: 32 for every float, 8 or 4."""
        pair = tuple(self.prefix + name + part for part in ("_q", "_scale"))
        if pair[0] not in self.tensors:
            return self.array(name, shape), 32
        if self.config.quantization is None:
            raise WeightsError(
                f"{self.tensors[pair[0]].file}: {pair[0]} must be known to "
                "quantization_config in config.json, which has none"
            )
        if self.prefix + name in self.tensors or pair[1] not in self.tensors:
            raise WeightsError(
                f"{self.tensors[pair[0]].file}: {pair[0]} must come with {pair[1]} and without "
                f"{self.prefix}{name}"
            )
        weight_q, weight_scale = (self.tensors[part] for part in pair)
        check_quantized(self.prefix + name, weight_q, weight_scale, shape)
        self.taken.update(pair)
        if self.with_values:
            values = read_quantized(weight_q, weight_scale, shape[1])
            self.done_with(weight_q.data)
        else:
            values = _shape_of(shape)
        bits = 8 if weight_q.dtype == "I8" else 4
        self.dtypes.add(f"int{bits}")
        return values, bits

    def norm(self, name: str, width: int) -> NormWeights:
        weight, bias = (self.array(f"{name}.{part}", (width,)) for part in ("weight", "bias"))
        return NormWeights(weight, bias)

    def find(self, name: str) -> str:
        """The name in the file, also where the LayerNorm has its old names."""
        full = self.prefix + name
        if full in self.tensors:
            return full
        stem, _, part = full.rpartition(".")
        legacy = f"{stem}.{LEGACY_NORM_NAMES.get(part, part)}"
        if stem.lower().endswith("layernorm") and legacy in self.tensors:
            return legacy
        raise WeightsError(f"{self.where}: tensor {full} must exist, it is missing")

    def array(self, name: str, shape: tuple[int, ...]) -> Float32:
        full = self.find(name)
        entry = self.tensors[full]
        if entry.dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{entry.file}: {full} must be of dtype {', '.join(FLOAT_DTYPES)}, "
                f"got {entry.dtype}"
            )
        if entry.data.shape != shape:
            raise WeightsError(
                f"{entry.file}: {full} must have shape {shape}, got {entry.data.shape}"
            )
        self.taken.add(full)
        self.dtypes.add(entry.dtype)
        if not self.with_values:
            return _shape_of(shape)
        values = to_float32(entry)
        if self.background is None:
            require_finite(f"{entry.file}: {full}", values)
            self.done_with(entry.data)
            return values
        rows = max(1, _PART_BYTES * len(values) // max(1, values.nbytes))
        for first in range(0, len(values), rows):
            self.background.check_finite(values[first : first + rows])
            self.done_with(entry.data[first : first + rows])
        return values

    def done_with(self, array: NDArray[Any]) -> None:
        """Let go of a tensor's pages: at once, or when its layer was laid out."""
        if self.layer_by_layer:
            self.mapped.append(array)
        else:
            release(array, self.background)

    def leftover(self) -> tuple[str, ...]:
        """Names not taken; refuses those that are not known to be unused."""
        rest = [name for name in self.tensors if name not in self.taken]
        unknown = [n for n in rest if not any(p.fullmatch(n) for p in self.table.unused)]
        if unknown:
            layers = [n for n in unknown if re.search(r"\.layer\.\d+\.", n)]
            hint = (
                f"; config.json says num_hidden_layers = {self.config.num_hidden_layers}"
                if layers
                else ""
            )
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise WeightsError(
                f"{self.where}: every tensor must be known to model_type "
                f"{self.config.model_type}, got {len(unknown)} unknown: {shown}{hint}"
            )
        return tuple(rest)


def require_finite(name: str, values: Float32) -> None:
    """Refuse NaN and infinity.

    Raises:
        WeightsError: with the count of values that are not finite.
    """
    # A dot product with itself is one pass at memory speed; only where it is not finite (which a
    # large but finite weight can cause, too) are the values looked at one by one.
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(np.dot(flat, flat))
    if suspicious:
        bad = int(flat.size - np.count_nonzero(np.isfinite(flat)))
        if bad:
            raise WeightsError(f"{name} must be finite, got {bad} NaN or infinite values")


def _shape_of(shape: tuple[int, ...]) -> Float32:
    """An array of a shape, of no memory to speak of."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def _fuse(parts: list[LinearWeights], background: Background | None) -> LinearWeights:
    weight = _joined([part.weight for part in parts], background)
    biases = [part.bias for part in parts if part.bias is not None]
    quantized = {part.quantized for part in parts}
    return LinearWeights(
        weight,
        _joined(biases) if biases else None,
        quantized=quantized == {True},
        input_range=parts[0].input_range,
    )


def _joined(parts: list[Float32], background: Background | None = None) -> Float32:
    if all(part.strides[-1] == 0 for part in parts):  # shapes without values
        return _shape_of((sum(map(len, parts)), *parts[0].shape[1:]))
    return np.concatenate(parts) if background is None else background.concatenate(parts)
