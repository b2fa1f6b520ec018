"""How sparse matrices stand in a safetensors file: the kept values and a bitmap of their places.

A matrix `x` (rows, columns), be it a float `y.weight` or an int8 `y.weight_q`, becomes

| tensor | dtype and shape | |
|---|---|---|
| `x_kept` | that of x, (rows, kept) | the kept values of each row, in the order of the columns |
| `x_index` | U8 (panels, ceil(columns / 8)) | bit c % 8 of byte c // 8: column c is kept |
| `x_shape` | I32 (2,) | rows, columns |

A panel is 16 consecutive rows of the pattern "block", which share their places, and one row of the
patterns "2:4" (whose bitmap is its usual 4 bits a group) and "unstructured". All rows keep equally
many. Expanding gives every bit of the matrix back, zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from minibert.errors import WeightsError
from minibert.weights.masks import BLOCK_ROWS, GROUP, Mask, kept_of_row
from minibert.weights.tensors import TensorEntry, TensorFiles

PARTS = ("_kept", "_index", "_shape")


@dataclass(frozen=True, slots=True)
class Sparsity:
    """What `sparsity_config` of config.json says: the pattern, and the fraction that is zero."""

    pattern: str
    fraction: float

    @property
    def panel_rows(self) -> int:
        """Rows that share their places."""
        return BLOCK_ROWS if self.pattern == "block" else 1


def compact(
    name: str, entry: TensorEntry, mask: Mask, sparsity: Sparsity
) -> dict[str, TensorEntry]:
    """The three tensors of a matrix, by name.

    Args:
        name: of the matrix.
        entry: (rows, columns), any dtype.
        mask: (rows, columns) of the pattern, equally many kept in each row.
        sparsity: the pattern.
    """
    rows = len(mask)
    index = np.packbits(mask[:: sparsity.panel_rows], axis=1, bitorder="little")
    shape = np.array(mask.shape, np.int32)
    return {
        f"{name}_kept": TensorEntry(entry.dtype, entry.data[mask].reshape(rows, -1), entry.file),
        f"{name}_index": TensorEntry("U8", index, entry.file),
        f"{name}_shape": TensorEntry("I32", shape, entry.file),
    }


def expand_all(
    tensors: TensorFiles, sparsity: Sparsity | None
) -> tuple[TensorFiles, dict[str, Mask]]:
    """Put every sparse matrix in the place of its three tensors.

    Args:
        tensors: of a checkpoint.
        sparsity: what config.json says; None where it says nothing.

    Returns:
        The tensors, matrices whole, and the mask of each matrix that was sparse.

    Raises:
        WeightsError: sparse tensors that config.json does not know of, a part that is missing or
            misshapen, or places that break the pattern's rule or do not fit the fraction.
    """
    candidates = (name.removesuffix("_index") for name in tensors if name.endswith("_index"))
    # An index without either of the others is a tensor of its own, known or refused by its name.
    names = [name for name in candidates if {name + "_kept", name + "_shape"} & set(tensors)]
    if not names:
        return tensors, {}
    if sparsity is None:
        raise WeightsError(
            f"{tensors[names[0] + '_index'].file}: {names[0]}_index must be known to "
            "sparsity_config in config.json, which has none"
        )
    masks: dict[str, Mask] = {}
    whole: dict[str, TensorEntry] = {}
    parts = {name + part: name for name in names for part in PARTS}
    for key in tensors:
        name = parts.get(key)
        if name is None:
            whole[key] = tensors[key]
        elif name not in masks:
            whole[name], masks[name] = _expand(name, tensors, sparsity)
    return TensorFiles(whole, tensors.files), masks


def _expand(
    name: str, tensors: Mapping[str, TensorEntry], sparsity: Sparsity
) -> tuple[TensorEntry, Mask]:
    where = f"{tensors[name + '_index'].file}: {name}"
    missing = [name + part for part in PARTS if name + part not in tensors]
    if missing or name in tensors:
        raise WeightsError(
            f"{where}_index must come with {', '.join(name + part for part in PARTS[::2])} and "
            f"without {name}" + (f"; missing: {', '.join(missing)}" if missing else "")
        )
    kept, index, shape = (tensors[name + part] for part in PARTS)
    if shape.dtype != "I32" or shape.data.shape != (2,) or (shape.data < 1).any():
        raise WeightsError(f"{where}_shape must be I32 (2,), rows and columns, got {shape.data}")
    rows, columns = (int(n) for n in shape.data)
    wanted = (-(-rows // sparsity.panel_rows), -(-columns // 8))
    if index.dtype != "U8" or index.data.shape != wanted:
        raise WeightsError(
            f"{where}_index must be U8 {wanted} for ({rows}, {columns}) of pattern "
            f"{sparsity.pattern}, got {index.dtype} {index.data.shape}"
        )
    count = kept_of_row(columns, sparsity.fraction)
    if kept.data.shape != (rows, count):
        raise WeightsError(
            f"{where}_kept must be {(rows, count)}, of {columns} columns all but a fraction of "
            f"{sparsity.fraction}, got {kept.data.shape}"
        )
    bits = np.unpackbits(index.data, axis=1, bitorder="little").astype(bool)
    places = bits[:, :columns]
    if bits[:, columns:].any() or not _keeps_rule(places, sparsity.pattern, count):
        raise WeightsError(
            f"{where}_index must keep {count} of {columns} columns in each row"
            + (", two of each four" if sparsity.pattern == "2:4" else "")
        )
    mask = np.repeat(places, sparsity.panel_rows, axis=0)[:rows]
    data = np.zeros((rows, columns), kept.data.dtype)
    data[mask] = kept.data.reshape(-1)
    return TensorEntry(kept.dtype, data, kept.file), mask


def _keeps_rule(places: Mask, pattern: str, count: int) -> bool:
    if pattern != "2:4":
        return bool((places.sum(axis=1) == count).all())
    groups = places.reshape(len(places), -1, GROUP) if places.shape[1] % GROUP == 0 else None
    return groups is not None and bool((groups.sum(axis=2) == GROUP // 2).all())
