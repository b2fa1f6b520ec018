"""Arithmetic in several words; expected values by Python's integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.emulator.cases_integer import edge
from tests.emulator.harness import Case


def cases() -> Iterator[Case]:
    """Two words at a time: the second instruction takes the carry of the first."""
    for kind in ("u32", "s32", "u64", "s64"):
        a, b, c, d = (edge(kind, seed=s) for s in (41, 42, 43, 44))
        bits = int(kind[1:])
        mask = (1 << bits) - 1

        def pair(
            function: Callable[[int, int], int],
            sources: tuple[np.ndarray, ...] = (a, b, c, d),
            bits: int = bits,
            mask: int = mask,
        ) -> tuple[np.ndarray, np.ndarray]:
            low, high, low2, high2 = ([int(v) & mask for v in s] for s in sources)
            wide = [
                function(h << bits | x, h2 << bits | x2)
                for x, h, x2, h2 in zip(low, high, low2, high2, strict=True)
            ]
            dtype = np.dtype(f"uint{bits}")
            halves = [[w & mask for w in wide], [w >> bits & mask for w in wide]]
            return tuple(np.array(half, dtype).view(sources[0].dtype) for half in halves)  # type: ignore[return-value]

        for name, function in (("add", lambda x, y: x + y), ("sub", lambda x, y: x - y)):
            yield Case(
                f"{name}.cc.{kind} {{0}}, {{a}}, {{c}}; {name}c.{kind} {{1}}, {{b}}, {{d}};",
                (a, b, c, d),
                pair(function),
            )
        # {b, a} * c modulo two words, plus {d, d}
        low, high, factor, more = ([int(v) for v in s] for s in (a, b, c, d))
        sign = kind[0] == "s"
        one, two = [], []
        for x, y, f, m in zip(low, high, factor, more, strict=True):
            first = (x * f & mask) + (m & mask)
            product = x * f >> bits if sign else (x & mask) * (f & mask) >> bits
            second = (product & mask) + (m & mask) + (first >> bits)
            third = (y * f & mask) + (first & mask) + (second >> bits)
            one.append(second & mask)
            two.append(third & mask)
        dtype = np.dtype(f"uint{bits}")
        yield Case(
            f"mad.lo.cc.{kind} {{0}}, {{a}}, {{c}}, {{d}}; mov.b{bits} {{1}}, {{0}};"
            f"madc.hi.cc.{kind} {{0}}, {{a}}, {{c}}, {{d}};"
            f"madc.lo.{kind} {{1}}, {{b}}, {{c}}, {{1}};",
            (a, b, c, d),
            tuple(np.array(v, dtype).view(a.dtype) for v in (one, two)),
        )
        yield Case(
            f"mad.hi.cc.{kind} {{0}}, {{a}}, {{c}}, {{d}};"
            f"madc.hi.{kind} {{1}}, {{a}}, {{c}}, {{b}};",
            (a, b, c, d),
            tuple(
                np.array(v, dtype).view(a.dtype) for v in high_sums(low, high, factor, more, bits)
            ),
        )


def high_sums(
    low: list[int], high: list[int], factor: list[int], more: list[int], bits: int
) -> tuple[list[int], list[int]]:
    mask = (1 << bits) - 1
    one, two = [], []
    for x, y, f, m in zip(low, high, factor, more, strict=True):
        product = x * f >> bits & mask
        first = product + (m & mask)
        one.append(first & mask)
        two.append(product + (y & mask) + (first >> bits) & mask)
    return one, two
