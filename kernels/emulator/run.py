"""Runs one kernel of a CUDA file from the outside: what `minibert emulate kernel.cu` calls.

Arguments are written as text:

```
float32[64,128]            an array that nobody wrote: an output
float32[64,128]=random     standard normal; integers uniform over their range
float32[64]=zeros          also ones, range
float32[64]=0.5            every element
data.npy                   an array from a file
int32:64                   a scalar; also float32:1e-12, and plain 64 for an int32
null                       a null pointer
```
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.errors import InputError
from minibert.kernels.cuda.nvrtc import CompileError, compile_ptx
from minibert.kernels.emulator.counters import LaunchCounters
from minibert.kernels.emulator.device_memory import device_array
from minibert.kernels.emulator.faults import KernelFault
from minibert.kernels.emulator.launch import Module
from minibert.kernels.emulator.limits import compute_capability
from minibert.kernels.emulator.types import Array

__all__ = ["Emulation", "emulate_file", "parse_argument"]

_ARRAY = re.compile(r"^(\w+)\[([\d\s,]+)\](?:=(.+))?$")
_SCALAR = re.compile(r"^(\w+):(.+)$")
_WHOLE = re.compile(r"^[-+]?\w+$")
_NO_NAMES = "no kernel that is not a template"


@dataclass(frozen=True, slots=True)
class Emulation:
    """Outcome of one launch.

    Attributes:
        kernel: its name.
        args: the arguments; arrays hold what the kernel left.
        counters: of the launch; None if it did not come to its end.
        fault: what was found, or None.
        printed: what the kernel's `printf` said.
        source: text of the file, for the report.
    """

    kernel: str
    args: tuple[Any, ...]
    counters: LaunchCounters | None
    fault: KernelFault | None
    printed: str = ""
    source: str = ""

    def report(self) -> str:
        """What was printed, then the finding with its source line, or the counters."""
        said = [self.printed.rstrip("\n")] if self.printed else []
        if self.fault is not None:
            return "\n".join((*said, str(self.fault), *self._lines(self.fault)))
        done = [*said, f"{self.kernel}: no fault found"]
        return "\n".join(done if self.counters is None else [*done, self.counters.table()])

    def _lines(self, fault: KernelFault) -> list[str]:
        lines = self.source.splitlines()
        places = [(fault.location.outermost, ">")]
        if fault.other is not None:
            places.append((fault.other.outermost, "<"))
        shown: dict[int, str] = {}
        for place, mark in places:
            if 1 <= place.line <= len(lines):
                shown.setdefault(place.line, f"{mark} {place.line:5d} | {lines[place.line - 1]}")
        return [shown[number] for number in sorted(shown)]


def emulate_file(
    path: str | Path,
    kernel: str | None,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    *,
    shared_mem: int = 0,
    arch: str = "sm_80",
    options: Sequence[str] = (),
    checks: bool = True,
    counters: bool = True,
    step_limit: int = 1_000_000,
    seed: int = 0,
) -> Emulation:
    """Compile a CUDA file, launch one kernel of it, and say what was found.

    Args:
        path: the `.cu` file; its folder is searched for headers.
        kernel: name of the kernel, or of a template instance such as `gemm<64>`; None if the file
            has only one that is not a template.
        grid: blocks.
        block: threads of a block.
        args: values as a kernel takes them, or texts as in the header of this module.
        shared_mem: bytes of dynamic shared memory; the 48 KB limit is lifted as far as `arch` can.
        arch: architecture.
        options: further NVRTC options, such as `-DN=64`.
        checks: look for races, uninitialised reads and blocks that write one place.
        counters: count instructions, sectors and wavefronts.
        step_limit: instructions of one path until the launch counts as endless.
        seed: of random arguments.

    Raises:
        InputError: a file, kernel or argument that cannot be used.
        CompileError: the file does not compile.
        LaunchError: the architecture is not known, or the launch is refused.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"path must be a CUDA file, got {str(path)!r}")
    compute_capability(arch)  # refused here: NVRTC would call it an invalid option
    try:
        source = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"path must be UTF-8 text, got {str(path)!r}: {error}") from error
    every = (f"--include-path={file.resolve().parent}", *options)
    symbol, text = _compile(source, file, kernel, arch, every)
    module = Module(text, arch=arch, checks=checks, counters=counters, step_limit=step_limit)
    function = module.get_function(symbol)
    if shared_mem > 48 * 1024:
        function.max_dynamic_shared_size_bytes = shared_mem
    generator = np.random.default_rng(seed)
    values = tuple(
        parse_argument(value, generator) if isinstance(value, str) else value for value in args
    )
    fault, counted = None, None
    try:
        counted = function(grid, block, values, shared_mem=shared_mem)
    except KernelFault as error:
        fault = error
    printed = "".join(function.printed)
    return Emulation(kernel or symbol, values, counted, fault, printed, source)


def _compile(
    source: str, file: Path, kernel: str | None, arch: str, options: Sequence[str]
) -> tuple[str, str]:
    """Symbol of the kernel and the PTX that has it."""
    plain = compile_ptx(source, name=file.name, arch=arch, options=options)
    names = Module(plain.text, arch=arch).kernel_names
    if kernel is None:
        if len(names) != 1:
            raise InputError(f"kernel must be named: {file.name} has {names or _NO_NAMES}")
        return names[0], plain.text
    if kernel in names:
        return kernel, plain.text
    try:
        named = compile_ptx(
            source, name=file.name, arch=arch, options=options, name_expressions=[kernel]
        )
    except CompileError as error:
        if "__nv_name_map" not in str(error):  # the instance itself does not compile
            raise
        raise InputError(
            f"kernel must be one that {file.name} has, got {kernel!r}; it has {names or _NO_NAMES}"
        ) from error
    return named.names[kernel], named.text


def parse_argument(text: str, generator: np.random.Generator) -> Any:
    """Make an argument from its text.

    Args:
        text: as in the header of this module.
        generator: for `random`.

    Raises:
        InputError: the text is none of the forms.
    """
    text = text.strip()
    if text == "null":
        return None
    if text.endswith(".npy"):
        if not Path(text).is_file():
            raise InputError(f"argument must be a .npy file, got {text!r}")
        try:
            loaded = np.load(text, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(
                f"argument must be a sound .npy file, got {text!r}: {error}"
            ) from error
        if not isinstance(loaded, np.ndarray):
            raise InputError(f"argument must be a .npy file, of one array, got {text!r}")
        return np.ascontiguousarray(loaded)
    if found := _ARRAY.match(text):
        shape = tuple(int(extent) for extent in found[2].split(",") if extent.strip())
        return _array(_dtype(found[1], text), shape, found[3], generator)
    if found := _SCALAR.match(text):
        return _scalar(_dtype(found[1], text), found[2], text)
    if _WHOLE.match(text) is None:
        raise InputError(
            "argument must be an array such as float32[64], a scalar such as float32:0.5 or 64, a "
            f".npy file or null, got {text!r}"
        )
    return _scalar(np.dtype(np.int32), text, text)


def _dtype(name: str, text: str) -> np.dtype[Any]:
    if name == "bfloat16":  # its bits; NumPy has no such type
        return np.dtype(np.uint16)
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        raise InputError(f"argument must begin with a dtype of numbers, got {text!r}")
    return dtype


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the largest whole number of a dtype."""
    if dtype.kind == "b":
        return 0, 1
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _scalar(dtype: np.dtype[Any], value: str, text: str) -> Any:
    try:
        if dtype.kind == "f":
            return dtype.type(float(value))
        whole = int(value, 0)
    except ValueError as error:
        raise InputError(f"argument must be a number of {dtype}, got {text!r}") from error
    low, high = _limits(dtype)
    if not low <= whole <= high:
        raise InputError(f"argument must be from {low} to {high}, got {text!r}")
    return dtype.type(whole)


def _array(
    dtype: np.dtype[Any], shape: tuple[int, ...], fill: str | None, generator: np.random.Generator
) -> Array:
    made = device_array(shape, dtype)
    if fill is None:
        return made
    if fill == "random" and dtype.kind == "f":
        made[...] = generator.standard_normal(shape)
    elif fill == "random":
        made[...] = generator.integers(*_limits(dtype), shape, dtype, endpoint=True)
    elif fill == "range":
        made[...] = np.arange(made.size).reshape(shape)
    elif fill in ("zeros", "ones"):
        made[...] = int(fill == "ones")
    else:
        made[...] = _scalar(dtype, fill, fill)
    return made
