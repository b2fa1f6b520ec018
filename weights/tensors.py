"""Tensors of a checkpoint folder: safetensors, memory-mapped, one file or a sharded index.

The safetensors library validates each file's header (sizes, overlaps, offsets against the file's
length); the data is then mapped, so that float32 weights cost no memory of their own and are shared
between processes. Format: 8 bytes little-endian header length, JSON header, data.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from minibert.errors import WeightsError

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5")
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOAT_DTYPES = ("F32", "F16", "BF16")


class TensorEntry(NamedTuple):
    """One tensor as the file describes it: dtype name, shape, and the mapped raw values."""

    dtype: str
    data: NDArray[Any]
    file: Path


class TensorFiles(Mapping[str, TensorEntry]):
    """All tensors of a checkpoint by name. Mapped, not read."""

    def __init__(self, entries: dict[str, TensorEntry], files: tuple[Path, ...]) -> None:
        """Hold what `open_tensors` found."""
        self._entries = entries
        self.files = files

    def __getitem__(self, name: str) -> TensorEntry:
        """The tensor of that name; KeyError when there is none."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the files."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many tensors."""
        return len(self._entries)


def open_tensors(folder: Path, single_file: str = SINGLE_FILE) -> TensorFiles:
    """Map the tensors of a folder.

    Args:
        folder: holds `single_file`, or `model.safetensors.index.json` with its shards.
        single_file: name of the one-file form.

    Raises:
        WeightsError: neither form is there, only pickles are, a shard lies outside the folder or is
            missing, a name occurs twice, or a file's header does not fit the file.
    """
    single = folder / single_file
    if single.is_file():
        return TensorFiles(_map_file(single), (single,))
    index = folder / INDEX_FILE
    if index.is_file():
        return _open_sharded(index)
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles:
        raise WeightsError(
            f"{folder} must hold {single_file}, got only {', '.join(pickles)}: pickle and "
            "framework files are never loaded, as they can run code; save the model again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise WeightsError(f"{folder} must hold {single_file} or {INDEX_FILE}, it has neither")


def to_float32(entry: TensorEntry) -> NDArray[np.float32]:
    """The values as float32: the mapping itself for F32, a widened copy for F16 and BF16."""
    if entry.dtype == "BF16":
        return (entry.data.astype(np.uint32) << 16).view(np.float32)
    return entry.data.astype(np.float32, copy=False)


def release(array: NDArray[Any], background: Background | None = None) -> None:
    """Let go of the memory pages of a mapped array; they are read again when they are used again.

    Checking a checkpoint touches all of it, computing only what was not packed and the rows of
    the embedding tables that texts ask for. Does nothing to an array that is not mapped, or where
    the system has no madvise.

    Args:
        array: all of a tensor, or rows of it.
        background: does it after what it was told before, when given.
    """
    owner: Any = array
    while owner is not None and not isinstance(owner, np.memmap):
        owner = getattr(owner, "base", None)
    mapping: mmap.mmap | None = getattr(owner, "_mmap", None)
    if mapping is None or not hasattr(mmap, "MADV_DONTNEED") or not array.flags.c_contiguous:
        return
    begin = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return
    if background is not None:
        background.release(array, array.ctypes.data + first - begin, last - first)
    else:
        mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def _open_sharded(index: Path) -> TensorFiles:
    try:
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{index} must be JSON with a weight_map: {error!r}") from None
    if (
        not isinstance(names, dict)
        or not names
        or any(not isinstance(shard, str) for shard in names.values())
    ):
        raise WeightsError(f"{index}: weight_map must map tensors to shards, got {names!r:.200}")
    root = index.parent.resolve()
    entries: dict[str, TensorEntry] = {}
    shards = tuple(dict.fromkeys(names.values()))
    for shard in shards:
        # Only the name may not leave the folder: the file itself may be a link into a cache.
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise WeightsError(f"{index}: shards must lie inside {root}, got {shard!r}")
        path = index.parent / shard
        if not path.is_file():
            raise WeightsError(f"{index}: shard {shard!r} must exist, it is missing")
        for name, entry in _map_file(path).items():
            if name in entries:
                raise WeightsError(f"{index}: {name} must stand in one shard, it is in two")
            entries[name] = entry
    missing = [name for name in names if name not in entries]
    if missing:
        raise WeightsError(f"{index}: {missing[0]} must stand in {names[missing[0]]}, it does not")
    return TensorFiles(entries, tuple(index.parent / shard for shard in shards))


def _map_file(path: Path) -> dict[str, TensorEntry]:
    if not os.access(path, os.R_OK):
        raise WeightsError(f"{path} must be a file that you may read, it is not")
    try:
        with safe_open(path, framework="numpy"):  # validates the whole header against the file
            pass
        with path.open("rb") as file:
            header_bytes = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(header_bytes))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise WeightsError(f"{path} must be a sound safetensors file: {error}") from None
    header.pop("__metadata__", None)
    if path.stat().st_size == 8 + header_bytes:
        mapped: NDArray[np.uint8] = np.empty(0, np.uint8)
    else:
        mapped = np.memmap(path, np.uint8, "r", offset=8 + header_bytes)
    entries = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        dtype = _DTYPES.get(info["dtype"])
        if dtype is None:
            raw: NDArray[Any] = mapped[begin:end]  # refused where it is used, with its name
        else:
            raw = _aligned(np.asarray(mapped[begin:end]), dtype).reshape(info["shape"])
        entries[name] = TensorEntry(info["dtype"], raw, path)
    return entries


def _aligned(raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """View bytes as `dtype`; copy where the file did not align them."""
    if raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    return raw.view(dtype)
