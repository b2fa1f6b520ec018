"""Loads the extension and chooses the instruction-set path that runs.

The path is chosen once, at load: the fastest that the processor and the operating system support,
or the one that the environment variable `MINIBERT_CPU_ISA` names, so that every path can be tested
on one machine. Results are the same bytes for one path, and differ in rounding between paths.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType

from minibert.errors import DeviceError

ISA_VARIABLE = "MINIBERT_CPU_ISA"

_native: ModuleType | None
try:
    from minibert.kernels.cpu import _native  # type: ignore[attr-defined,no-redef,unused-ignore]
except ImportError as error:
    _native = None
    _missing = f"the extension minibert.kernels.cpu._native is not there: {error}"
else:
    _missing = ""


@dataclass(frozen=True, slots=True)
class CpuPath:
    """One instruction-set path of the extension.

    Attributes:
        index: how the extension numbers it.
        name: what `MINIBERT_CPU_ISA` calls it.
        supported: by this processor and operating system.
        needs: the instruction sets that it takes.
        formats: number formats of its linear layers.
    """

    index: int
    name: str
    supported: bool
    needs: str
    formats: tuple[str, ...]


def is_built() -> bool:
    """Whether the extension is there, whatever `MINIBERT_CPU_ISA` says."""
    return _native is not None


def available() -> tuple[bool, str]:
    """Whether the kernels can run here, and in words which path, or why not."""
    if _native is None:
        return False, f"{_missing}; install with a C++17 compiler to build it"
    try:
        return True, f"path {choose_path().name}"
    except DeviceError as error:
        return False, str(error)


def native() -> ModuleType:
    """The extension module.

    Raises:
        DeviceError: it was not built.
    """
    if _native is None:
        raise DeviceError(available()[1])
    return _native


def all_paths() -> tuple[CpuPath, ...]:
    """Every path in the extension, the fastest first."""
    return tuple(
        CpuPath(index, name, supported, needs, tuple(formats))
        for index, (name, supported, needs, formats) in enumerate(native().paths())
    )


def left_out() -> dict[str, str]:
    """Paths that the compiler could not build, and why, in its words."""
    return dict(native().left_out())


def choose_path(name: str | None = None) -> CpuPath:
    """The path to run.

    Args:
        name: a path's name; the environment variable `MINIBERT_CPU_ISA` when None, and the fastest
            supported path when that is not set either.

    Raises:
        DeviceError: the extension was not built, or no supported path has that name.
    """
    paths = all_paths()
    wanted = name or os.environ.get(ISA_VARIABLE)
    # Paths in software are chosen by name only.
    supported = [path for path in paths if path.supported]
    if not wanted:
        return next(path for path in supported if not path.name.endswith("-software"))
    for path in supported:
        if path.name == wanted:
            return path
    known = {path.name: path.needs for path in paths}
    reason = f", which needs {known[wanted]}" if wanted in known else ""
    if wanted in left_out():
        reason = f", which is not in this build ({left_out()[wanted]})"
    raise DeviceError(
        f"{'isa' if name else ISA_VARIABLE} must be one of "
        f"{', '.join(path.name for path in supported)} on this machine, got {wanted!r}{reason}"
    )
