"""The matrix instructions of Arm in software: their rounding, in NumPy, and what it may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.kernels.cpu import loader

ISA = "neon-bf16-software"
pytestmark = pytest.mark.skipif(
    not loader.available()[0] or ISA not in [p.name for p in loader.all_paths() if p.supported],
    reason=f"no path {ISA} here",
)


def to_bfloat16(x: Any) -> Any:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def add_to_odd(a: Any, b: Any) -> Any:
    """a + b of float32, rounded to odd: cut off, and the last bit set where something was cut."""
    exact = a.astype(np.float64) + b.astype(np.float64)  # exact: exponents are near each other
    cut = exact.view(np.uint64) & ~np.uint64(2**29 - 1)
    cut |= np.where(cut != exact.view(np.uint64), np.uint64(2**29), np.uint64(0))
    return cut.view(np.float64).astype(np.float32)


def bfmmla_products(x: Any, weight: Any, pieces: list[tuple[int, int]]) -> Any:
    """x @ weight.T as BFMMLA sums it; `pieces` are the pairs of bfloat16 parts, in order."""
    parts = []
    for operand in (x, weight):
        first = to_bfloat16(operand)
        parts.append((first, to_bfloat16(operand - first)))
    out = np.zeros((len(x), len(weight)), np.float32)
    for begin in range(0, x.shape[1], 128):
        acc = np.zeros_like(out)
        for k in range(begin, min(begin + 128, x.shape[1]), 4):
            for i, j in pieces:
                for pair in (k, k + 2):
                    products = [
                        parts[0][i][:, None, c] * parts[1][j][None, :, c] for c in (pair, pair + 1)
                    ]
                    acc = add_to_odd(acc, add_to_odd(*products))
        out = out + acc
    return out


def linear(ops: Any, put: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    prepared = ops.prepare_linear(weight, bias, name="test")
    with ops.stream(alone=False) as running:
        return running.download(running.linear(put(running, x), prepared))


@pytest.mark.parametrize("in_features", [4, 64, 132, 388])
@pytest.mark.parametrize(
    ("precision", "pieces"), [("medium", [(0, 0)]), ("high", [(0, 1), (1, 0), (0, 0)])]
)
def test_sums_are_rounded_to_odd(
    make_ops: Any, reference: Any, precision: str, pieces: Any, in_features: int
) -> None:
    rng = np.random.default_rng(in_features)
    # Magnitudes of one binade: sums of their products are exact in float64.
    x, weight = (
        (rng.uniform(1, 2, (n, in_features)) * rng.choice([-1, 1], (n, in_features))).astype(
            np.float32
        )
        for n in (5, 11)
    )
    ops = make_ops(matmul_precision=precision, isa=ISA)
    out = linear(ops, reference.put, x, weight)
    assert out.tobytes() == (bfmmla_products(x, weight, pieces) + np.float32(0)).tobytes()


def test_values_below_the_normal_range_count_as_zero(make_ops: Any, reference: Any) -> None:
    ops = make_ops("bfloat16", isa=ISA)
    tiny, small = np.float32(2.0**-127), np.float32(2.0**-70)
    x = np.array([[tiny, 0, 0, 0], [small, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    weight = np.array([[1, 0, 0, 0], [small, 0, 0, 0]], np.float32)
    expected = [[0, 0], [small, 0], [1, small]]
    np.testing.assert_array_equal(linear(ops, reference.put, x, weight), expected)


def test_infinite_and_undefined_values_stay_what_they_are(make_ops: Any, reference: Any) -> None:
    ops = make_ops("bfloat16", isa=ISA)
    x = np.ones((4, 6), np.float32)
    x[0, 5], x[1, 2], x[2, :2] = np.inf, np.nan, 3e38
    out = linear(ops, reference.put, x, np.ones((3, 6), np.float32))
    assert (out[0] == np.inf).all()
    assert np.isnan(out[1]).all()
    assert (out[2] == np.inf).all()
    assert (out[3] == 6).all()


def test_the_precisions_use_the_matrix_instructions_and_the_highest_does_not(
    make_ops: Any,
) -> None:
    formats = {
        ("float32", "highest"): "float32",
        ("float32", "high"): "bfloat16x3",
        ("float32", "medium"): "bfloat16x1",
        ("bfloat16", "highest"): "bfloat16x1",
        ("float16", "highest"): "float16",
        ("int8", "highest"): "int8",
    }
    for (dtype, precision), expected in formats.items():
        assert make_ops(dtype, matmul_precision=precision, isa=ISA).format == expected
