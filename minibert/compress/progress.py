"""Measurements of a long run, kept on the disk so that a run that was stopped can go on."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minibert.weights.checkpoint import LayerWeights, LinearWeights

FITTED = ("attention_output", "intermediate", "output")
"""Parts of a layer that `refit` changes."""


class Journal:
    """Numbers by name in a JSON file beside the output; removed when the work is done.

    A file that belongs to another model, other texts or other options is ignored and replaced.
    """

    def __init__(self, path: Path, identity: str) -> None:
        """Read what an earlier run of the same work left.

        Args:
            path: the file.
            identity: of the work, from `identity_of`.
        """
        self.path = path
        self.identity = identity
        self._values: dict[str, float] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["identity"] == identity:
                self._values = {str(k): float(v) for k, v in found["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def __len__(self) -> int:
        """How many numbers are known."""
        return len(self._values)

    def value(self, name: str, measure: Callable[[], float]) -> float:
        """The number of that name; measured, and written down, where it is not known yet."""
        if name not in self._values:
            self._values[name] = float(measure())
            partial = self.path.with_name(self.path.name + ".partial")
            text = json.dumps({"identity": self.identity, "values": self._values})
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.path)
        return self._values[name]

    def remove(self) -> None:
        """Forget everything, and what a run killed while it wrote has left."""
        for path in (self.path, self.path.with_name(self.path.name + ".partial")):
            path.unlink(missing_ok=True)


class LayerStore:
    """Fitted layers of a long run, a file each beside the output; removed when the work is done."""

    def __init__(self, path: Path, identity: str) -> None:
        """Name the files `<path>.<layer>.safetensors`; those of other work are ignored.

        Args:
            path: their common beginning.
            identity: of the work, from `identity_of`.
        """
        self.path = path
        self._identity = identity

    def get(self, number: int, layer: LayerWeights) -> LayerWeights | None:
        """The fitted layer of that number, shaped like `layer`; None where there is none."""
        try:
            with safe_open(self._file(number), framework="np") as file:
                if file.metadata()["identity"] != self._identity:
                    return None
                found = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, KeyError, TypeError, SafetensorError):
            return None
        parts: dict[str, Any] = {}
        for part in FITTED:
            old: LinearWeights = getattr(layer, part)
            weight = found.get(f"{part}.weight")
            if weight is None or weight.shape != old.weight.shape:
                return None
            parts[part] = LinearWeights(weight, found.get(f"{part}.bias"))
        return replace(layer, **parts)

    def put(self, number: int, layer: LayerWeights) -> None:
        """Keep a fitted layer."""
        arrays = {}
        for part in FITTED:
            linear: LinearWeights = getattr(layer, part)
            arrays[f"{part}.weight"] = np.ascontiguousarray(linear.weight)
            if linear.bias is not None:
                arrays[f"{part}.bias"] = np.ascontiguousarray(linear.bias)
        path = self._file(number)
        partial = path.with_name(path.name + ".partial")
        save_file(arrays, partial, metadata={"identity": self._identity})
        os.replace(partial, path)

    def remove(self) -> None:
        """Forget everything."""
        for path in self.path.parent.glob(f"{glob.escape(self.path.name)}.*.safetensors*"):
            path.unlink()

    def _file(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}.safetensors")


def identity_of(files: Sequence[Path], texts: Sequence[str], options: str) -> str:
    """A digest of the model's files (name, size, time), the texts and the options."""
    digest = hashlib.sha256(options.encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
