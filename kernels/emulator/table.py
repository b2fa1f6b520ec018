"""The table of operations: which opcodes the emulator knows, and what builds each of them.

An entry names its base (`add`), the parts that select it (`f32`) and the further parts that it
understands (`rn`, `ftz`). An opcode with any other part is unknown: nothing is ignored silently.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import TYPES

if TYPE_CHECKING:
    from minibert.kernels.emulator.bind import Binder, Step

__all__ = ["Operation", "lookup", "operation", "operations"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry.

    Attributes:
        name: base and choice, such as `add.f32`.
        choice: the parts that select it.
        allowed: other parts that it understands.
        build: makes a step of an instruction; takes the choice as further arguments.
        kind: for the counters: `integer`, `float`, `special`, `convert`, `move`, `compare`,
            `control`, `warp`, `barrier`, `tensor`, `load`, `store`, `atomic`, `copy`.
        flops: floating-point operations of one thread.
        since: compute capability that has it, such as 80.
    """

    name: str
    choice: tuple[str, ...]
    allowed: frozenset[str]
    build: Callable[..., Step]
    kind: str
    flops: int
    since: int

    def bind(self, binder: Binder, instruction: Instruction) -> Step:
        """Make the step."""
        return self.build(binder, instruction, *self.choice)


_table: dict[str, list[Operation]] = {}


def operation(
    base: str,
    *choices: str,
    mods: str = "",
    kind: str,
    flops: int = 0,
    since: int = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a builder into the table, once per combination of `choices`.

    Args:
        base: first part of the opcode.
        choices: lists of parts, separated by blanks; one of each list selects the entry.
        mods: further parts that the builder understands.
        kind: see `Operation`.
        flops: see `Operation`.
        since: see `Operation`.
    """

    def enter(build: Callable[..., Any]) -> Callable[..., Any]:
        for choice in itertools.product(*(listed.split() for listed in choices)):
            name = ".".join((base, *choice))
            allowed = frozenset(mods.split())
            made = Operation(name, choice, allowed, build, kind, flops, since)
            _table.setdefault(base, []).append(made)
        return build

    return enter


def operations() -> list[Operation]:
    """Every entry of the table."""
    return [entry for entries in _table.values() for entry in entries]


def conversion_class(parts: list[str]) -> str:
    """`float_to_int` and the like: conversions are too many to enter one by one."""
    types = [TYPES[part] for part in parts if part in TYPES]
    if len(types) != 2:
        return "unknown"
    target, source = ("float" if kind.is_float else "int" for kind in types)
    if types[0].kind == "packed":
        target = "pair"
    return f"{source}_to_{target}"


def _rank(entry: Operation, parts: list[str]) -> tuple[int, int]:
    """The most particular entry wins; of equals the one whose first part comes first."""
    return len(entry.choice), -parts.index(entry.choice[0]) if entry.choice else 0


def lookup(parts: tuple[str, ...], arch: int) -> Operation:
    """The entry for an opcode.

    Args:
        parts: the opcode, cut at its dots.
        arch: compute capability, such as 80.

    Raises:
        UnsupportedError: naming the opcode.
    """
    base = parts[0]
    rest = [p.partition("::")[0] + "::" if p.startswith(("L1::", "L2::")) else p for p in parts[1:]]
    if base == "cvt" and "pack" not in rest:
        rest.append(conversion_class(rest))
    best: Operation | None = None
    for entry in _table.get(base, []):
        left = list(rest)
        for part in entry.choice:
            if part not in left:
                break
            left.remove(part)
        else:
            if all(p in entry.allowed for p in left) and (
                best is None or _rank(entry, rest) > _rank(best, rest)
            ):
                best = entry
    if best is None:
        raise UnsupportedError(f"PTX opcode {'.'.join(parts)} is not known to the emulator")
    if arch < best.since:
        raise UnsupportedError(
            f"PTX opcode {'.'.join(parts)} needs sm_{best.since} or later, got sm_{arch}"
        )
    return best
