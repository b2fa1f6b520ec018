"""Operands of PTX instructions: registers, immediates, addresses, vectors, symbols."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from minibert.kernels.emulator.faults import UnsupportedError

__all__ = ["Address", "Immediate", "Name", "Operand", "Pair", "Vector", "parse_operands"]


@dataclass(frozen=True, slots=True)
class Name:
    """A register, special register, label or variable; `negated` for `!p`."""

    name: str
    negated: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant: an integer, or the bits of a float of `float_size` bytes."""

    value: int
    float_size: int = 0

    def as_float(self) -> float:
        """The value of a float constant, or of an integer used as one."""
        if self.float_size == 4:
            return float(struct.unpack("<f", self.value.to_bytes(4, "little"))[0])
        if self.float_size == 8:
            return float(struct.unpack("<d", self.value.to_bytes(8, "little"))[0])
        return float(self.value)


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`; `base` is a register, a variable or None."""

    base: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Vector:
    """`{a, b, ...}`, or a list in parentheses of a call."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """`p|q`: two destinations; None for `_`."""

    first: Name | None
    second: Name | None


Operand: TypeAlias = "Name | Immediate | Address | Vector | Pair"

_NUMBER = re.compile(r"^-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)[uU]?$")
_FLOAT = re.compile(r"^(-?)0([fFdD])([0-9a-fA-F]+)$")
_DECIMAL = re.compile(r"^-?(\d+\.\d*|\.\d+|\d+[eE])")
_MOVED_NAME = re.compile(r"^([\w$%.]+)\s*(?:([+-])\s*(-?\w+))?$")
_NAME = re.compile(r"^[\w$%.]+$")


def _split(text: str) -> list[str]:
    """Cut at the commas that are outside of brackets."""
    pieces, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and depth == 0:
            pieces.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*pieces, last] if last else pieces


def _integer(text: str) -> int:
    digits = text.rstrip("uU")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("-")
    if len(digits) > 1 and digits.startswith("0") and digits.isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def parse_operands(text: str, resolve: Callable[[str], str] | None) -> tuple[Operand, ...]:
    """Parse a comma-separated list; `resolve` renames scoped registers, if there are any."""
    if resolve is None:
        return tuple(_unscoped(piece) for piece in _split(text))
    return tuple(_operand(piece, resolve) for piece in _split(text))


@functools.lru_cache(maxsize=1 << 15)
def _unscoped(text: str) -> Operand:
    return _operand(text, lambda name: name)


def _operand(text: str, resolve: Callable[[str], str]) -> Operand:
    if text[0] in "{(":
        return Vector(parse_operands(text[1:-1], resolve))
    if text.startswith("["):
        return _address(text[1:-1].strip(), resolve)
    if "|" in text:
        first, second = (_pair_item(t.strip(), resolve) for t in text.split("|"))
        return Pair(first, second)
    if _NUMBER.match(text):
        return Immediate(_integer(text))
    if found := _FLOAT.match(text):
        size = 4 if found[2] in "fF" else 8
        bits = int(found[3], 16)
        return Immediate(bits ^ (1 << (8 * size - 1)) if found[1] else bits, size)
    if _DECIMAL.match(text):
        return Immediate(int.from_bytes(struct.pack("<d", float(text)), "little"), 8)
    if text.startswith("!"):
        return Name(resolve(text[1:].strip()), negated=True)
    if text.startswith("-") and _NAME.match(text[1:]):
        raise UnsupportedError(f"PTX operand {text!r} is not known")
    found = _MOVED_NAME.match(text)
    if not found:
        raise UnsupportedError(f"PTX operand {text!r} is not known")
    sign = -1 if found[2] == "-" else 1
    return Name(resolve(found[1]), offset=sign * _integer(found[3]) if found[2] else 0)


def _pair_item(text: str, resolve: Callable[[str], str]) -> Name | None:
    return None if text == "_" else Name(resolve(text))


def _address(text: str, resolve: Callable[[str], str]) -> Operand:
    if "," in text:  # a tensor-map address
        raise UnsupportedError(f"PTX address [{text}] is not known")
    if _NUMBER.match(text):
        return Address(None, _integer(text))
    base, plus, offset = text.partition("+")
    if not plus and (found := re.match(r"^(.*\w)\s*-\s*(\w+)$", text)):
        return Address(resolve(found[1].strip()), -_integer(found[2]))
    return Address(resolve(base.strip()), _integer(offset.strip()) if plus else 0)
