"""What the emulator reports: one exception per finding, with the place in the source.

```
EmulatorError (DeviceError)        anything below
├── UnsupportedError               PTX that the emulator does not know, by name
├── LaunchError                    a launch that the architecture or the kernel refuses
└── KernelFault                    a bug in the running kernel; `.kind` says which
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from minibert.errors import DeviceError

__all__ = [
    "KINDS",
    "EmulatorError",
    "KernelFault",
    "LaunchError",
    "Location",
    "Thread",
    "UnsupportedError",
]

KINDS = (
    "out of bounds",
    "misaligned",
    "uninitialised read",
    "race",
    "exchange inside a warp",
    "divergent barrier",
    "incomplete warp",
    "copy in flight",
    "step limit",
    "two blocks write one place",
    "write to read-only memory",
    "trap",
)


@dataclass(frozen=True, slots=True)
class Location:
    """A place in the source, and where that code was inlined.

    Attributes:
        file: as the compiler wrote it.
        line: from 1; 0 when the compiler gave none.
        inlined_at: the call site, for inlined code.
    """

    file: str
    line: int
    inlined_at: Location | None = None

    def __str__(self) -> str:
        """`file:line inlined at file:line`."""
        place = f"{PurePath(self.file).name}:{self.line}"
        return f"{place} inlined at {self.inlined_at}" if self.inlined_at else place

    @property
    def outermost(self) -> Location:
        """The line of the kernel itself: the end of the chain of call sites."""
        return self.inlined_at.outermost if self.inlined_at else self


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of the grid: block index and thread index, each (x, y, z)."""

    block: tuple[int, int, int]
    thread: tuple[int, int, int]

    def __str__(self) -> str:
        """`block (0, 0, 0) thread (5, 0, 0)`."""
        return f"block {self.block} thread {self.thread}"


class EmulatorError(DeviceError):
    """Base of what the emulator raises."""


class UnsupportedError(EmulatorError):
    """The PTX holds something that the emulator does not know."""


class LaunchError(EmulatorError):
    """The architecture or the kernel refuses the launch."""


class KernelFault(EmulatorError):
    """A bug in a running kernel.

    Attributes:
        kind: one of `KINDS`.
        kernel: name of the kernel.
        location: source line of the instruction.
        thread: the first thread that did it.
        detail: what happened, in words.
        other: source line of the other access, for races.
        instruction: the PTX.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        kernel: str,
        location: Location,
        thread: Thread | None,
        instruction: str,
        other: Location | None = None,
    ) -> None:
        """Compose the message from the parts."""
        self.kind, self.detail, self.kernel = kind, detail, kernel
        self.location, self.thread, self.other = location, thread, other
        self.instruction = instruction
        who = f", {thread}" if thread else ""
        super().__init__(f"{kind} in {kernel} at {location}{who}: {detail}\n    PTX: {instruction}")
