"""`printf` of kernels: the call of `vprintf` becomes one operation that formats for each thread."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.chunk import Chunk
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.operands import Name
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.ports import LOCAL_WINDOW
from minibert.kernels.emulator.table import operation

__all__ = ["c_string"]

_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d*)(?P<precision>(?:\.(?:\*|\d*))?)"
    r"(?P<size>hh|h|ll|l|j|z|t|)(?P<kind>[diouxXeEfFgGcsp%])"
)
_WIDE = ("ll", "l", "j", "z", "t")


def c_string(chunk: Chunk, address: int) -> str:
    """The text at a global address, up to its zero byte."""
    allocation = chunk.space.find(address)
    if allocation is None:
        return "?"
    text = allocation.window[address - allocation.base :].tobytes()
    return text.split(b"\0", 1)[0].decode(errors="replace")


class _Arguments:
    """The buffer of arguments of one thread: each aligned to its own size."""

    def __init__(self, chunk: Chunk, lane: int, address: int) -> None:
        self.data = chunk.local.data
        self.start = lane * chunk.local.stride + address - LOCAL_WINDOW
        self.offset = 0

    def take(self, dtype: str) -> Any:
        """The next argument."""
        size = np.dtype(dtype).itemsize
        self.offset = -(-self.offset // size) * size
        at = self.start + self.offset
        self.offset += size
        return self.data[at : at + size].view(dtype)[0].item()


def _formatted(chunk: Chunk, text: str, arguments: _Arguments) -> str:
    def replace(found: re.Match[str]) -> str:
        kind, wide = found["kind"], found["size"] in _WIDE
        if kind == "%":
            return "%"
        width = str(arguments.take("<i4")) if found["width"] == "*" else found["width"]
        precision = found["precision"]
        if precision == ".*":
            precision = f".{arguments.take('<i4')}"
        start = f"%{found['flags']}{width}{precision}"
        if kind in "eEfFgG":
            return str(f"{start}{kind}" % arguments.take("<f8"))
        if kind == "s":
            return f"{start}s" % c_string(chunk, arguments.take("<u8"))
        if kind == "p":
            return hex(arguments.take("<u8"))
        if kind == "c":
            return str(f"{start}c" % (arguments.take("<i4") & 0xFF))
        letter = "i" if kind in "di" else "u"
        value = arguments.take(f"<{letter}{8 if wide else 4}")
        return str(f"{start}{'d' if kind in 'diu' else kind}" % value)

    return _CONVERSION.sub(replace, text)


@operation("printf", kind="control")
def printf(b: Binder, ins: Instruction) -> Step:
    """Format for each thread in turn; what is printed is kept, in order."""
    chunk, local = b.chunk, b.chunk.local
    names = [operand.name for operand in ins.operands if isinstance(operand, Name)]
    text_at, arguments_at, result_at = (b.program.local[name] for name in names)

    def step(group: Group) -> None:
        lanes = np.arange(b.threads) if group.lanes is None else group.lanes
        for lane in map(int, lanes):
            base = lane * local.stride
            text = c_string(chunk, int(local.views[8][(base + text_at) // 8]))
            address = int(local.views[8][(base + arguments_at) // 8])
            chunk.printed.append(_formatted(chunk, text, _Arguments(chunk, lane, address)))
            local.views[4][(base + result_at) // 4] = len(_CONVERSION.findall(text))
            if local.written.size:
                local.written[base + result_at : base + result_at + 4] = 0xFF

    return step
