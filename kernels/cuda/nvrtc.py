"""Compiles CUDA C++ by NVRTC, through ctypes: no driver, no device and no CuPy are needed.

Two products of one source: PTX for a virtual architecture (what the emulator interprets) and a
cubin for a real one (what a device loads). The cubin is made by the ptxas inside NVRTC, which
refuses instructions that the architecture lacks and reports registers, shared memory and spills.

The library comes from the wheel `nvidia-cuda-nvrtc` (or `-cu12`), or from an installed toolkit;
`cuda_fp16.h` and its companions come from `nvidia-cuda-runtime`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minibert.errors import DeviceError, MissingDependencyError
from minibert.kernels.cuda.nvrtc_log import KernelResources, explain, parse_resources

__all__ = [
    "CompileError",
    "Cubin",
    "KernelResources",
    "Ptx",
    "compile_cubin",
    "compile_ptx",
    "include_folders",
    "library_path",
    "supported_architectures",
    "version",
]

_INSTALL = "pip install 'minibert-engine[emulator]' brings it (wheel nvidia-cuda-nvrtc)"


class CompileError(DeviceError):
    """CUDA source that does not compile: the message has the compiler's log, of many lines."""


@dataclass(frozen=True, slots=True)
class Ptx:
    """PTX text of one source.

    Attributes:
        text: the PTX, with line information.
        names: name expression as asked (`kernel<64>`) -> symbol in the PTX.
        log: what the compiler said; warnings, or empty.
    """

    text: str
    names: Mapping[str, str]
    log: str


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code of one source for one architecture.

    Attributes:
        image: the ELF file, as a device loads it.
        names: name expression as asked -> symbol in the image.
        resources: symbol -> what ptxas said about the kernel.
        log: the whole log, ptxas lines included.
    """

    image: bytes
    names: Mapping[str, str]
    resources: Mapping[str, KernelResources] = field(default_factory=dict)
    log: str = ""


def _package_folders() -> list[Path]:
    """Folders that the CUDA wheels share: `site-packages/nvidia/<part>`."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [part for root in roots for part in sorted(Path(root).glob("*"), reverse=True)]


def _toolkit_folders() -> list[Path]:
    """Folders where an installed toolkit lies."""
    named = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    return [Path(folder) for folder in (*named, "/usr/local/cuda")]


def include_folders() -> tuple[str, ...]:
    """Folders with `cuda_fp16.h`: of the wheels first, then of a toolkit; empty if there is none.

    Only the first folder is returned: headers of two toolkits must not mix.
    """
    for folder in (*_package_folders(), *_toolkit_folders()):
        include = folder / "include"
        if (include / "cuda_fp16.h").is_file():
            return (str(include),)
    return ()


def library_path() -> str:
    """The NVRTC library that will be loaded.

    Raises:
        MissingDependencyError: if neither a wheel nor a toolkit has one.
    """
    patterns = (
        "lib/libnvrtc.so*",
        "lib64/libnvrtc.so*",
        "bin/nvrtc64_*.dll",
        "bin/*/nvrtc64_*.dll",
    )
    for folder in (*_package_folders(), *_toolkit_folders()):
        for pattern in patterns:
            found = [p for p in sorted(folder.glob(pattern)) if ".alt." not in p.name]
            if found:
                return str(found[-1])
    system = ctypes.util.find_library("nvrtc")
    if system is None:
        raise MissingDependencyError(
            f"NVRTC, the CUDA run-time compiler, was not found: {_INSTALL}"
        )
    return system


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        # NVRTC opens its second library by bare name; one that is loaded already is found.
        for builtins in Path(path).parent.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins))
        library = ctypes.CDLL(path)
    except OSError as error:
        raise MissingDependencyError(
            f"NVRTC at {path} cannot be loaded ({error}): {_INSTALL}"
        ) from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> tuple[int, int]:
    """Version of the NVRTC library, such as (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


def supported_architectures() -> tuple[int, ...]:
    """Compute capabilities that this NVRTC compiles for, such as (75, 80, ..., 120)."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    numbers = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(numbers), "nvrtcGetSupportedArchs")
    return tuple(numbers)


def compile_ptx(
    source: str,
    *,
    name: str,
    arch: str = "sm_80",
    headers: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    name_expressions: Sequence[str] = (),
) -> Ptx:
    """Compile CUDA C++ to PTX with line information.

    PTX is not checked against its architecture: only `compile_cubin` refuses an instruction that
    the architecture lacks.

    Args:
        source: CUDA C++.
        name: file name for messages and for the line information.
        arch: `sm_80` and the like.
        headers: name as written in `#include` -> text.
        options: further NVRTC options, such as `-DkBlockM=64`.
        name_expressions: template instances to make, such as `gemm<64, 32>`.

    Raises:
        CompileError: the source does not compile; the message shows the numbered lines.
        MissingDependencyError: there is no NVRTC.
    """
    virtual = f"--gpu-architecture={arch.replace('sm_', 'compute_')}"
    with _Program(source, name, headers or {}) as program:
        log = program.compile((virtual, *options), name_expressions)
        text = program.read("PTX").rstrip(b"\0").decode()
        return Ptx(text, program.lowered(name_expressions), log)


def compile_cubin(
    source: str,
    *,
    name: str,
    arch: str = "sm_80",
    headers: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    name_expressions: Sequence[str] = (),
) -> Cubin:
    """Compile CUDA C++ to machine code for one real architecture, and report its resources.

    Args: as `compile_ptx`; `arch` may carry a suffix (`sm_90a`).

    Raises:
        CompileError: the source does not compile, or ptxas refuses it for `arch`.
        MissingDependencyError: there is no NVRTC.
    """
    real = (f"--gpu-architecture={arch}", "--ptxas-options=-v")
    with _Program(source, name, headers or {}) as program:
        log = program.compile((*real, *options), name_expressions)
        image = program.read("CUBIN")
        return Cubin(image, program.lowered(name_expressions), parse_resources(log), log)


def _check(code: int, what: str) -> None:
    if code != 0:
        raise DeviceError(f"{what} failed: {_library().nvrtcGetErrorString(code).decode()}")


class _Program:
    """One `nvrtcProgram`, destroyed at the end of its `with` block."""

    def __init__(self, source: str, name: str, headers: Mapping[str, str]) -> None:
        self.source, self.name, self.headers = source, name, dict(headers)
        self.handle = ctypes.c_void_p()

    def __enter__(self) -> _Program:
        count = len(self.headers)
        texts = (ctypes.c_char_p * count)(*(text.encode() for text in self.headers.values()))
        names = (ctypes.c_char_p * count)(*(key.encode() for key in self.headers))
        code = _library().nvrtcCreateProgram(
            ctypes.byref(self.handle),
            self.source.encode(),
            self.name.encode(),
            count,
            texts,
            names,
        )
        _check(code, "nvrtcCreateProgram")
        return self

    def __exit__(self, *_: object) -> None:
        _library().nvrtcDestroyProgram(ctypes.byref(self.handle))

    def compile(self, options: Sequence[str], name_expressions: Sequence[str]) -> str:
        """Compile and return the log."""
        for expression in name_expressions:
            code = _library().nvrtcAddNameExpression(self.handle, expression.encode())
            _check(code, f"name expression {expression!r}")
        includes = [f"--include-path={folder}" for folder in include_folders()]
        every = ["--std=c++17", "-lineinfo", *includes, *options]
        encoded = (ctypes.c_char_p * len(every))(*(option.encode() for option in every))
        code = _library().nvrtcCompileProgram(self.handle, len(every), encoded)
        log = self.read("ProgramLog").rstrip(b"\0").decode(errors="replace")
        if code != 0:
            reason = _library().nvrtcGetErrorString(code).decode()
            hint = ""
            if "could not open source file" in log and not includes:
                hint = "\nCUDA's own headers come with the wheel nvidia-cuda-runtime"
            raise CompileError(
                f"{self.name} does not compile ({' '.join(options)}): {reason}\n"
                + explain(log, {self.name: self.source, **self.headers})
                + hint
            )
        return log

    def read(self, what: str) -> bytes:
        """Fetch the product `what` (PTX, CUBIN or ProgramLog) as bytes."""
        size = ctypes.c_size_t()
        _check(
            getattr(_library(), f"nvrtcGet{what}Size")(self.handle, ctypes.byref(size)),
            f"nvrtcGet{what}Size",
        )
        buffer = ctypes.create_string_buffer(size.value)
        _check(getattr(_library(), f"nvrtcGet{what}")(self.handle, buffer), f"nvrtcGet{what}")
        return buffer.raw

    def lowered(self, name_expressions: Sequence[str]) -> dict[str, str]:
        """Symbols of the name expressions."""
        names = {}
        for expression in name_expressions:
            symbol = ctypes.c_char_p()
            code = _library().nvrtcGetLoweredName(
                self.handle, expression.encode(), ctypes.byref(symbol)
            )
            _check(code, f"nvrtcGetLoweredName({expression!r})")
            names[expression] = (symbol.value or b"").decode()
        return names
