"""A checkpoint as named tensors that can be replaced, removed and written again.

Tensors that nobody touches keep their bytes and dtype. The layout of names is that of
`minibert.weights.names`; what an encoder does not read (a pooler, heads) is carried along.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.config import EncoderConfig
from minibert.errors import InputError
from minibert.weights.checkpoint import LayerWeights, LinearWeights
from minibert.weights.masks import Mask
from minibert.weights.names import LEGACY_NORM_NAMES as LEGACY
from minibert.weights.names import NAME_TABLES, NameTable
from minibert.weights.sparse_stored import Sparsity, compact, expand_all
from minibert.weights.tensors import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorEntry,
    open_tensors,
    to_float32,
)

LINEAR_PARTS = ("query", "key", "value", "attention_output", "intermediate", "output")
"""Canonical names of a layer's linear maps, as in `NameTable.layer`."""
FUSED_PARTS = LINEAR_PARTS[:3]
"""Those that `LayerWeights.qkv` joins, in its order."""

_DTYPES_OF_ARRAYS = {"f4": "F32", "f2": "F16", "i1": "I8", "u1": "U8"}
# Files that describe other forms of the weights, or weights of other frameworks.
_NOT_COPIED = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot", ".ckpt", ".gguf")


@dataclass(slots=True)
class Checkpoint:
    """The tensors of one encoder folder, and what is to become of them.

    Attributes:
        table: the names of the family.
        prefix: what stands before every encoder name in these files.
        tensors: name in the file -> tensor, in the order of the files; sparse ones are whole.
        sparsity: the pattern that masks follow, or None.
        masks: name -> what is kept of a matrix that is stored sparse.
    """

    table: NameTable
    prefix: str
    tensors: dict[str, TensorEntry]
    files: tuple[Path, ...]
    changed: bool = field(default=False)
    sparsity: Sparsity | None = None
    masks: dict[str, Mask] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, config: EncoderConfig) -> Checkpoint:
        """Map the tensors of a folder that `load_encoder` has accepted with this config."""
        tensors, masks = expand_all(open_tensors(folder), config.sparsity)
        table = NAME_TABLES[config.model_type]
        probe = table.embeddings["word"]
        prefix = next(
            p for p in table.prefixes if p + probe in tensors or f"{p}{probe}_q" in tensors
        )
        return cls(
            table,
            prefix,
            dict(tensors),
            tensors.files,
            sparsity=config.sparsity,
            masks=masks,
        )

    def layer_name(self, layer: int, part: str, kind: str = "weight") -> str:
        """Full name of a layer's tensor: part is canonical ("query"), kind weight or bias."""
        return f"{self.prefix}{self.table.layer[part].format(i=layer)}.{kind}"

    def embedding_names(self) -> Iterator[str]:
        """Full names of the embedding tables that are there."""
        for part in ("word", "position", "token_type"):
            name = self.prefix + self.table.embeddings.get(part, "\0")
            if name in self.tensors:
                yield name

    def read(self, name: str) -> NDArray[np.float32]:
        """A float tensor, widened to float32."""
        return to_float32(self.tensors[name])

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replace a tensor's values; a float tensor keeps its dtype."""
        old = self.tensors[name]
        if old.dtype == "BF16":
            data: NDArray[Any] = to_bfloat16(np.asarray(values, np.float32))
        else:
            data = np.ascontiguousarray(values, old.data.dtype)
        self.tensors[name] = TensorEntry(old.dtype, data, old.file)
        self.changed = True

    def replace(self, name: str, parts: Mapping[str, NDArray[Any]]) -> None:
        """Put other tensors in the place of one, keeping its place in the order.

        Of a sparse matrix the first of them takes over the mask.
        """
        if name in self.masks:
            self.masks[next(iter(parts))] = self.masks.pop(name)
        file = self.tensors[name].file
        renewed: dict[str, TensorEntry] = {}
        for key, entry in self.tensors.items():
            if key != name:
                renewed[key] = entry
                continue
            for part, values in parts.items():
                dtype = _DTYPES_OF_ARRAYS[values.dtype.str.lstrip("<|=")]
                renewed[part] = TensorEntry(dtype, np.ascontiguousarray(values), file)
        self.tensors = renewed
        self.changed = True

    def write_layer(self, i: int, old: LayerWeights, new: LayerWeights) -> None:
        """Replace what differs between two versions of a layer; the rest keeps its bytes."""
        size = old.qkv.weight.shape[0] // 3, new.qkv.weight.shape[0] // 3
        for k, part in enumerate(LINEAR_PARTS):
            fused = part in FUSED_PARTS
            name = "qkv" if fused else part
            before: LinearWeights = getattr(old, name)
            after: LinearWeights = getattr(new, name)
            first = slice(k * size[0], (k + 1) * size[0]) if fused else slice(None)
            second = slice(k * size[1], (k + 1) * size[1]) if fused else slice(None)
            if not np.array_equal(before.weight[first], after.weight[second]):
                self.write(self.layer_name(i, part), after.weight[second])
            if before.bias is not None and after.bias is not None:
                if not np.array_equal(before.bias[first], after.bias[second]):
                    self.write(self.layer_name(i, part, "bias"), after.bias[second])

    def write_norms(self, i: int, old: LayerWeights, new: LayerWeights) -> None:
        """Replace what differs between two versions of a layer's layer_norms."""
        for part in ("attention_norm", "output_norm"):
            before, after = getattr(old, part), getattr(new, part)
            for kind in ("weight", "bias"):
                if not np.array_equal(getattr(before, kind), getattr(after, kind)):
                    self.write(self.norm_name(i, part, kind), getattr(after, kind))

    def norm_name(self, layer: int, part: str, kind: str) -> str:
        """Full name of a layer_norm's tensor, also where it has its old names."""
        name = self.layer_name(layer, part, kind)
        return name if name in self.tensors else self.layer_name(layer, part, LEGACY[kind])

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Keep these layers, numbered anew from 0; the others' tensors go."""
        start = self.prefix + self.table.layer["query"].partition("{i}")[0]
        numbers = {old: new for new, old in enumerate(layers)}
        renewed = {}
        for name, entry in self.tensors.items():
            number, dot, rest = name[len(start) :].partition(".")
            if name.startswith(start) and dot and number.isdecimal():
                if int(number) in numbers:
                    renewed[f"{start}{numbers[int(number)]}.{rest}"] = entry
            else:
                renewed[name] = entry
        self.changed = self.changed or list(renewed) != list(self.tensors)
        self.tensors = renewed

    def save(self, folder: Path) -> None:
        """Write the tensors to a folder; files nobody changed are copied byte for byte."""
        if not self.changed:
            for path in self.files:
                shutil.copyfile(path, folder / path.name)
            index = self.files[0].parent / INDEX_FILE
            if self.files[0].name != SINGLE_FILE and index.is_file():
                shutil.copyfile(index, folder / INDEX_FILE)
            return
        stored: dict[str, TensorEntry] = {}
        for name, entry in self.tensors.items():
            if name in self.masks and self.sparsity is not None:
                stored |= compact(name, entry, self.masks[name], self.sparsity)
            else:
                stored[name] = entry
        write_safetensors(folder / SINGLE_FILE, stored)


def write_safetensors(path: Path, tensors: Mapping[str, TensorEntry]) -> None:
    """Write a safetensors file: header length, JSON header, data in the order given.

    https://huggingface.co/docs/safetensors
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Wide numbers first: then every tensor is aligned to its own size.
    order = sorted(tensors, key=lambda name: -tensors[name].data.dtype.itemsize)
    end = 0
    for name in order:
        entry = tensors[name]
        begin, end = end, end + entry.data.nbytes
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.data.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name].data).data)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest, ties to even; raw 16 bits."""
    bits = values.view(np.uint32) if values.flags.c_contiguous else values.copy().view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16)


def copy_other_files(source: Path, target: Path, encoder_folder: Path) -> None:
    """Copy what a model folder has besides the encoder's weights and its config.json.

    Args:
        source: the model folder.
        target: an existing empty folder.
        encoder_folder: inside `source`; its weights are written by `Checkpoint.save`.

    Raises:
        InputError: a link that leaves the folder for something that is not a file.
    """
    encoder = encoder_folder.resolve()
    for folder, names, files in os.walk(source):
        names[:] = [name for name in names if not name.startswith(".")]
        inside = Path(folder).relative_to(source)
        (target / inside).mkdir(parents=True, exist_ok=True)
        in_encoder = Path(folder).resolve() == encoder
        for name in files:
            path = Path(folder) / name
            weights = in_encoder and (
                path.suffix in _NOT_COPIED or name.endswith(".index.json") or name == "config.json"
            )
            if weights or name.startswith("."):
                continue
            if not path.is_file():
                raise InputError(f"{path} must be a file, it is a broken link")
            shutil.copyfile(path, target / inside / name)


def write_config(source: Path, target: Path, changes: Mapping[str, Any]) -> None:
    """Write config.json with some keys set; without changes, the same bytes."""
    text = source.read_text(encoding="utf-8-sig")
    if not changes:
        target.write_bytes(source.read_bytes())
        return
    values = {**json.loads(text), **changes}
    target.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
