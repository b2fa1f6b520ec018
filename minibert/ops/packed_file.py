"""Weights as the CPU kernels laid them out, in a file that processes map and share.

A server with several processes holds the packed weights once, in the page cache, and a process that
starts does not pack. The file belongs to one model, one build of the kernels, one path and one
number format; anything else does not find it and writes its own. It is a cache: where it cannot be
read or written, weights are packed as without it.

Format: 8 bytes magic, 8 bytes header length, JSON header (key, entries), then each layer's bytes on
a 64-byte boundary.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minibert import log
from minibert.kernels.cpu.loader import native

_MAGIC = b"MBPACK01"
_ALIGNMENT = 64


@dataclass
class PackedFile:
    """The packed layers of one model; found ones are mapped, new ones are written by `save`.

    Attributes:
        path: of the file; its name is the digest of `key`.
        key: what the layout depends on.
    """

    path: Path
    key: dict[str, Any]
    _mapped: mmap.mmap | None = None
    _start: int = 0
    _entries: dict[str, Any] = field(default_factory=dict)
    _added: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str, format_: str, shape: tuple[int, int]) -> int | None:
        """Address of a layer's packed bytes, None where the file has none such."""
        entry = self._entries.get(name)
        if self._mapped is None or entry is None or entry[:3] != [format_, *shape]:
            return None
        return self._start + int(entry[3])

    def add(self, name: str, format_: str, shape: tuple[int, int], handle: Any) -> None:
        """Remember a layer that was packed because `find` had none.

        Raises:
            ValueError: a second layer of that name, which could not be told from the first.
        """
        if name in self._added:
            raise ValueError(f"layers must have names of their own, got {name!r} twice")
        self._added[name] = (format_, shape, handle)

    def save(self) -> None:
        """Write the file where layers were added; whole or not at all, and never an error."""
        if not self._added:
            return
        entries: dict[str, Any] = {}
        chunks = []
        end = 0
        for name, (format_, shape, handle) in self._added.items():
            address, size = native().linear_memory(handle)
            end = -(-end // _ALIGNMENT) * _ALIGNMENT
            entries[name] = [format_, *shape, end, size]
            chunks.append((end, address, size))
            end += size
        self._added = {}
        header = json.dumps({"key": self.key, "bytes": end, "entries": entries}).encode()
        begin = _data_begin(len(header))
        partial = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("xb") as file:  # not tempfile, whose files others cannot read
                    file.write(_MAGIC + struct.pack("<Q", len(header)) + header)
                    for offset, address, size in chunks:
                        file.seek(begin + offset)
                        file.write((ctypes.c_char * size).from_address(address))
                partial.replace(self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
        except OSError as error:
            log.warning("packed weights were not kept: %s", error)


def open_packed(
    folder: Path, model_folder: Path, path: str, *, dtype: str, matmul_precision: str
) -> PackedFile:
    """Find the file of a model, or prepare to write it.

    Args:
        folder: where packed files are kept; made when the first one is written.
        model_folder: all of it: the encoder and what follows it may lie in folders of their own.
        path: name of the instruction-set path.
        dtype: of the Ops.
        matmul_precision: of the Ops.
    """
    files = sorted({*model_folder.rglob("*.safetensors"), *model_folder.rglob("*.json")})
    key = {
        "kernels": _digest(Path(str(native().__file__))),
        "path": path,
        "dtype": dtype,
        "matmul_precision": matmul_precision,
        "model": [known for file in files if (known := _identity(file, model_folder))],
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    packed = PackedFile(folder / f"{digest}.packed", key)
    try:
        _map(packed)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        log.warning("packed weights in %s are not used: %s", packed.path, error)
    return packed


def _identity(file: Path, model_folder: Path) -> list[Any] | None:
    """What tells a file from others; None where it cannot be read, and is in no loaded model."""
    try:
        stat = file.stat()
    except OSError:
        return None
    # Both names: the same files, linked under other ones, may be another model.
    names = str(file.relative_to(model_folder)), str(file.resolve())
    return [*names, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _map(packed: PackedFile) -> None:
    with packed.path.open("rb") as file:
        if file.read(8) != _MAGIC:
            raise ValueError("it does not begin as packed weights do")
        size = struct.unpack("<Q", file.read(8))[0]
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(size))
        begin = _data_begin(size)
        if header["key"] != packed.key:
            raise ValueError("it belongs to other weights")
        if os.fstat(file.fileno()).st_size != begin + header["bytes"]:
            raise ValueError("it is cut off")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    packed._mapped = mapped
    packed._start = np.frombuffer(mapped, np.uint8).ctypes.data + begin
    packed._entries = header["entries"]


def _data_begin(header_bytes: int) -> int:
    return -(-(16 + header_bytes) // _ALIGNMENT) * _ALIGNMENT


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]
