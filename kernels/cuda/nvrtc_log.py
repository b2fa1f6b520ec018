"""Reads what NVRTC and its ptxas say: resources per kernel, errors with the source lines shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_ERROR = re.compile(r"^(?P<file>[^\s(][^(]*)\((?P<line>\d+)\): (?:catastrophic )?error")
_LINE_DIRECTIVE = re.compile(r'^\s*#\s*line\s+(\d+)(?:\s+"([^"]*)")?')


@dataclass(frozen=True, slots=True)
class KernelResources:
    """What one kernel takes on one architecture, as ptxas reports it.

    Attributes:
        registers: 32-bit registers of a thread.
        smem_bytes: static shared memory of a block.
        stack_bytes: local memory of a thread.
        spill_store_bytes: bytes written to local memory because registers ran out.
        spill_load_bytes: bytes read back.
        barriers: named barriers in use.
    """

    registers: int = 0
    smem_bytes: int = 0
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    barriers: int = 0


def parse_resources(log: str) -> dict[str, KernelResources]:
    """Read the lines of `ptxas -v`: symbol -> resources."""
    resources: dict[str, KernelResources] = {}
    pieces = _ENTRY.split(log)[1:]
    for name, text in zip(pieces[::3], pieces[2::3], strict=True):
        stack = _STACK.search(text)
        frame, stores, loads = (int(n) for n in stack.groups()) if stack else (0, 0, 0)
        resources[name] = KernelResources(
            registers=_number(r"Used (\d+) registers", text),
            smem_bytes=_number(r"(\d+) bytes smem", text),
            stack_bytes=frame,
            spill_store_bytes=stores,
            spill_load_bytes=loads,
            barriers=_number(r"used (\d+) barriers", text),
        )
    return resources


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def numbered_lines(sources: Mapping[str, str]) -> dict[tuple[str, int], str]:
    """Map (file, line) to the text there, following `#line` directives."""
    lines: dict[tuple[str, int], str] = {}
    for name, text in sources.items():
        file, number = name, 1
        for content in text.splitlines():
            directive = _LINE_DIRECTIVE.match(content)
            if directive:
                number = int(directive.group(1))
                file = directive.group(2) or file
                continue
            lines[file, number] = content
            number += 1
    return lines


def explain(log: str, sources: Mapping[str, str], *, context: int = 2) -> str:
    """The log, with numbered source lines under each error that names a line we have."""
    lines = numbered_lines(sources)
    shown: list[str] = []
    for entry in log.splitlines():
        shown.append(entry)
        found = _ERROR.match(entry)
        if not found:
            continue
        file, line = found["file"], int(found["line"])
        for number in range(line - context, line + context + 1):
            if (file, number) in lines:
                mark = ">" if number == line else " "
                shown.append(f"{mark} {number:5d} | {lines[file, number]}")
    return "\n".join(shown)
