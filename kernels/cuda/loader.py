"""Kernel text to machine code: joined headers, NVRTC, and a cache by content.

A kernel is a file of this folder and a name expression, such as `layer_norm.cu` and
`layer_norm_kernel<half, 3>`. Its headers are joined into one text with `#line` directives, so that
the cache key sees every byte that matters and messages still name the right file and line.

Compiled code is kept in memory and, as `<hash>.cubin` or `<hash>.ptx`, in `MINIBERT_CACHE_DIR` (or
the user's cache folder): the hash covers text, instance, architecture, options and the version of
the compiler. A damaged or unwritable cache costs time, never correctness.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from minibert.kernels.cuda import nvrtc

__all__ = ["Code", "cache_folder", "clear_memory_cache", "load_code", "read_source"]

_FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')

Product = Literal["cubin", "ptx"]


@dataclass(frozen=True, slots=True)
class Code:
    """One compiled kernel.

    Attributes:
        source: file that it comes from.
        kernel: name expression of the instance.
        arch: architecture, `sm_80`.
        symbol: name inside the image.
        image: cubin, or PTX text as UTF-8.
        path: where the cache holds it, None without a writable cache.
        resources: registers, shared memory and spills, for a cubin.
    """

    source: str
    kernel: str
    arch: str
    symbol: str
    image: bytes
    path: Path | None = None
    resources: nvrtc.KernelResources = field(default_factory=nvrtc.KernelResources)

    def on_disk(self) -> Code:
        """The same code with a path, in a temporary folder where the cache cannot be written."""
        if self.path is not None and self.path.exists():
            return self
        suffix = ".cubin" if self.image.startswith(b"\x7fELF") else ".ptx"
        path = Path(tempfile.mkdtemp(prefix="minibert-")) / f"kernel{suffix}"
        path.write_bytes(self.image)
        return replace(self, path=path)


@functools.cache
def read_source(name: str) -> str:
    """Text of a kernel file with its headers joined in, each once, under `#line`.

    Args:
        name: a file of `kernels/cuda`, such as `gemm.cu`, or the whole path of another file, whose
            headers are those of this folder.
    """
    return "\n".join(_join(name, set())) + "\n"


def _join(name: str, seen: set[str]) -> list[str]:
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    text = (_FOLDER / name).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            lines.append("" if line.startswith("#pragma once") else line)
        elif include[1] not in seen:
            lines += _join(include[1], seen)
            lines.append(f'#line {number + 1} "{name}"')
        else:
            lines.append("")
    return lines


def cache_folder() -> Path:
    """Where compiled kernels are kept: `kernels` in `MINIBERT_CACHE_DIR` or the user's cache."""
    named = os.environ.get("MINIBERT_CACHE_DIR")
    if named:
        return Path(named) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minibert" / "kernels"


_memory: dict[str, Code] = {}


def clear_memory_cache() -> None:
    """Forget what was loaded in this process; the files stay."""
    _memory.clear()


def load_code(
    source: str,
    kernel: str,
    *,
    arch: str,
    product: Product = "cubin",
    options: Sequence[str] = (),
) -> Code:
    """Compile one kernel instance, or take it from the cache.

    Args:
        source: a file of `kernels/cuda`.
        kernel: name expression of the instance.
        arch: `sm_80` and the like.
        product: `cubin` for a device, `ptx` for the emulator.
        options: further NVRTC options.

    Raises:
        DeviceError: it does not compile; the message shows the numbered source.
        MissingDependencyError: there is no NVRTC.
    """
    text = read_source(source)
    parts = (text, kernel, arch, product, *options, str(nvrtc.version()))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if key not in _memory:
        code = _read(key, source, kernel, arch, product)
        if code is None:
            code = _write(key, product, _compile(text, source, kernel, arch, product, options))
        _memory[key] = code
    return _memory[key]


def _compile(
    text: str, source: str, kernel: str, arch: str, product: Product, options: Sequence[str]
) -> Code:
    if product == "ptx":
        ptx = nvrtc.compile_ptx(
            text, name=source, arch=arch, options=options, name_expressions=[kernel]
        )
        return Code(source, kernel, arch, ptx.names[kernel], ptx.text.encode())
    cubin = nvrtc.compile_cubin(
        text, name=source, arch=arch, options=options, name_expressions=[kernel]
    )
    symbol = cubin.names[kernel]
    return Code(source, kernel, arch, symbol, cubin.image, resources=cubin.resources[symbol])


def _read(key: str, source: str, kernel: str, arch: str, product: Product) -> Code | None:
    """The cached code, or None where there is none or it is not what it should be."""
    path = cache_folder() / f"{key}.{product}"
    try:
        image = path.read_bytes()
        notes: Mapping[str, object] = json.loads(path.with_suffix(".json").read_text())
        if notes["sha256"] != hashlib.sha256(image).hexdigest():
            return None
        resources = notes["resources"]
        if not isinstance(resources, dict):
            return None
        return Code(
            source,
            kernel,
            arch,
            str(notes["symbol"]),
            image,
            path,
            nvrtc.KernelResources(**{str(name): int(n) for name, n in resources.items()}),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(key: str, product: Product, code: Code) -> Code:
    """Keep the code in the cache folder: each file appears whole or not at all."""
    path = cache_folder() / f"{key}.{product}"
    notes = {
        "source": code.source,
        "kernel": code.kernel,
        "arch": code.arch,
        "symbol": code.symbol,
        "sha256": hashlib.sha256(code.image).hexdigest(),
        "resources": asdict(code.resources),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path.with_suffix(".json"), json.dumps(notes, indent=1).encode())
        _write_whole(path, code.image)
    except OSError:
        return code
    return replace(code, path=path)


def _write_whole(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:16])
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
