"""int8 linear layers: exact integers, the quantisation error expected and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.errors import DeviceError
from minibert.kernels.cpu import loader

SHAPES = [(1, 1, 1), (1, 384, 384), (5, 33, 67), (19, 96, 384), (100, 40, 1536), (7, 17, 3)]


def steps_of(isa: str) -> int:
    """Largest quantised activation: 127 where two products must fit an int16."""
    return 127 if isa in ("avx2", "avx512") else 255


SUMS = 32  # of squares, side by side
WHOLE = np.float32(12582912)  # 1.5 * 2^23: a float32 sum with it is rounded to a whole number


def clip_of(steps: int) -> Any:
    """Root mean squares that the steps cover: fewer where the steps are fewer."""
    return np.float32(6.0 if steps > 127 else 3.5)


def limit_of(x: Any, steps: int) -> Any:
    """`clip_of` times the root mean square of each row, summed in the kernel's order."""
    padded = np.zeros((len(x), -(-x.shape[1] // SUMS) * SUMS), np.float32)
    with np.errstate(over="ignore"):
        padded[:, : x.shape[1]] = x * x
    lanes = np.zeros((len(x), SUMS), np.float32)
    for begin in range(0, padded.shape[1], SUMS):
        lanes += padded[:, begin : begin + SUMS]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    squares = np.where(lanes[:, 0] > np.float32(1e-30), lanes[:, 0], np.float32(np.inf))
    return clip_of(steps) * np.sqrt(squares / np.float32(x.shape[1]))


def quantize_rows(x: Any, steps: int) -> tuple[Any, Any]:
    """float32 rows to (whole steps from zero, act_scale), one NumPy operation per kernel's step."""
    limit = limit_of(x, steps)
    low = np.maximum(np.minimum(x.min(axis=1), 0), -limit).astype(np.float32)
    high = np.minimum(np.maximum(x.max(axis=1), 0), limit).astype(np.float32)
    spread = high - low
    per_unit = np.divide(np.float32(steps), spread, where=spread > 0, out=np.zeros_like(spread))
    zero_point = np.rint(-low * per_unit)[:, None]
    whole = (x * per_unit[:, None] + (WHOLE + zero_point)) - WHOLE
    # Within the limit both roundings together may pass the last step by one; beyond, all counts.
    q = np.where(np.abs(x) > limit[:, None], whole, np.clip(whole, 0, steps))
    return (q - zero_point).astype(np.int64), spread / np.float32(steps)


def quantize_weight(weight: Any) -> tuple[Any, Any]:
    largest = np.abs(weight).max(axis=1)
    steps = np.divide(np.float32(127), largest, where=largest > 0, out=np.zeros_like(largest))
    return np.rint(weight * steps[:, None]).astype(np.int64), largest / np.float32(127)


def integers(x: Any, weight: Any, bias: Any, steps: int) -> Any:
    """What int8 must give, float32: exact integer sums, then two roundings and the bias."""
    q, act_scale = quantize_rows(x, steps)
    weight_q, weight_scale = quantize_weight(weight)
    acc = q @ weight_q.T
    assert np.abs(acc).max() < 2**31
    scale = act_scale[:, None] * weight_scale[None, :]
    return acc.astype(np.float32) * scale + bias


def run(ops: Any, put: Any, x: Any, weight: Any, bias: Any) -> Any:
    weights = ops.prepare_linear(weight, bias, name="test")
    with ops.stream(alone=True) as running:
        return running.download(running.linear(put(running, x), weights))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_the_exact_integers_on_every_path(
    isa: str, make_ops: Any, reference: Any, shape: tuple[int, int, int]
) -> None:
    rows, out_features, in_features = shape
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    x[:, ::50] *= 20
    weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
    bias = rng.standard_normal(out_features).astype(np.float32)
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, bias)
    assert out.tobytes() == integers(x, weight, bias, steps_of(isa)).tobytes()


@pytest.mark.parametrize("in_features", [1, 16, 100, 1536, 32768])
def test_outliers_are_exact_and_do_not_make_the_rest_coarse(
    isa: str, make_ops: Any, reference: Any, in_features: int
) -> None:
    rng = np.random.default_rng(in_features)
    x = rng.standard_normal((6, in_features)).astype(np.float32)
    x[1, 0] = -3e4  # all but alone: the limit is as far as it can be from the others
    x[2, -1] = 3e4
    x[3, :: max(1, in_features // 7)] *= 100
    x[4] *= 1e-20  # squares vanish
    x[5] *= 1e25  # squares overflow
    if in_features == 32768:  # as many as Chebyshev allows
        x[3] = 1e-3
        most = 32768 // (13 if steps_of(isa) == 127 else 26)
        x[3, :most] = 1000 * rng.choice([-1, 1], most)
    columns = rng.choice(in_features, min(in_features, 40), replace=False)
    weight = np.zeros((len(columns), in_features), np.float32)
    weight[np.arange(len(columns)), columns] = 127
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, np.zeros(len(columns)))
    assert out.tobytes() == integers(x, weight, np.float32(0), steps_of(isa)).tobytes()
    far = clip_of(steps_of(isa)) * np.sqrt((x.astype(float) ** 2).mean(axis=1))
    limit = np.where(np.arange(6) < 4, far, np.inf)
    low, high = np.maximum(x.min(axis=1), -limit), np.minimum(x.max(axis=1), limit)
    step = (np.maximum(high, 0) - np.minimum(low, 0)) / steps_of(isa)
    exact = x[:, columns].astype(float)
    # Half a step for the value and half for the zero point; 1e-6 for the float32 around the sum.
    assert (np.abs(out / 127.0 - exact) <= 1.01 * step[:, None] + 1e-6 * np.abs(exact)).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("in_features", [2, 4, 64, 3072])
def test_extreme_values_do_not_saturate(
    isa: str, make_ops: Any, reference: Any, sign: int, in_features: int
) -> None:
    # Every product is the largest there is, of one sign.
    steps = steps_of(isa)
    x = np.full((7, in_features), float(steps), np.float32)
    weight = np.full((33, in_features), sign * 127.0, np.float32)
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, np.zeros(33, np.float32))
    assert (out == sign * steps * 127 * in_features).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [20, 42, 43, 44, 64, 65, 127])
def test_sums_of_several_groups_do_not_wrap(
    isa: str, make_ops: Any, reference: Any, sign: int, size: int
) -> None:
    # Paths that add sums of two products in int16 may take as many as fit: six of 43 do, with
    # activations of 127 (6 * 43 * 127 < 2^15 <= 6 * 44 * 127), four of 64, three of 86.
    rng = np.random.default_rng(size)
    in_features = 400
    x = np.full((9, in_features), float(steps_of(isa)), np.float32)
    x[1] = rng.integers(0, steps_of(isa) + 1, in_features)
    x[1, 0] = steps_of(isa)
    weight = np.full((50, in_features), sign * float(size), np.float32)
    weight[10:20] = rng.integers(-size, size + 1, (10, in_features))
    weight[20:30, ::3] = rng.integers(-127, 128, (10, len(range(0, in_features, 3))))
    weight[30:] = rng.integers(size - 1, size + 1, (20, in_features)) * sign
    weight[:, 7] = 127  # one step is 1 in every row
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, np.zeros(50, np.float32))
    exact = integers(x, weight, np.float32(0), steps_of(isa))
    assert out.tobytes() == exact.tobytes()
    np.testing.assert_array_equal(exact[0], x[0].astype(float) @ weight.T.astype(float))


def test_rows_of_one_sign_use_all_steps(isa: str, make_ops: Any, reference: Any) -> None:
    # Rows such as GELU leaves: from -0.17 up. An error of half a step per value is what all steps
    # over the row's range must give.
    rng = np.random.default_rng(1)
    x = np.maximum(rng.standard_normal((20, 300)), -0.17).astype(np.float32)
    weight = np.eye(300, dtype=np.float32)
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, np.zeros(300, np.float32))
    step = (x.max(axis=1) - x.min(axis=1)) / steps_of(isa)
    # Zero point and value are rounded separately: half a step each.
    assert (np.abs(out - x) <= 1.001 * step[:, None]).all()
    assert np.abs(out - x).mean() <= 0.3 * step.mean()


def test_zero_rows_and_zero_weights(isa: str, make_ops: Any, reference: Any) -> None:
    x = np.ones((3, 40), np.float32)
    x[1] = 0
    weight = np.ones((20, 40), np.float32)
    weight[3] = 0
    bias = np.arange(20, dtype=np.float32)
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, bias)
    assert (out[1] == bias).all()
    assert (out[:, 3] == 3).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_nan(
    isa: str, make_ops: Any, reference: Any, bad: float
) -> None:
    x = np.random.default_rng(2).standard_normal((5, 37)).astype(np.float32)
    weight = np.random.default_rng(3).standard_normal((20, 37)).astype(np.float32)
    ops = make_ops("int8", isa=isa)
    clean = run(ops, reference.put, x, weight, None)
    x[2, 36] = bad
    out = run(ops, reference.put, x, weight, None)
    assert np.isnan(out[2]).all()
    assert (np.delete(out, 2, 0) == np.delete(clean, 2, 0)).all()


def test_a_layer_too_deep_for_int32_is_refused(isa: str, make_ops: Any) -> None:
    ops = make_ops("int8", isa=isa)
    with pytest.raises(DeviceError, match=r"deep.*in_features must be at most 32768.*32769"):
        ops.prepare_linear(np.zeros((1, 32769), np.float32), None, name="deep")


def test_every_path_has_int8() -> None:
    if not loader.available()[0]:
        pytest.skip(loader.available()[1])
    assert all("int8" in path.formats for path in loader.all_paths())


# ---- a range fixed beforehand ------------------------------------------------------------------
def fixed_integers(x: Any, weight: Any, bias: Any, steps: int, fixed: tuple[float, float]) -> Any:
    """What int8 must give with a fixed range: as `integers`, but values beyond saturate."""
    low, high = map(np.float32, fixed)
    per_unit = np.float32(steps) / (high - low)
    zero_point = np.rint(-low * per_unit)
    with np.errstate(over="ignore"):
        whole = (x * per_unit + (WHOLE + zero_point)) - WHOLE
        q = np.clip(whole, 0, steps) - zero_point
    weight_q, weight_scale = quantize_weight(weight)
    acc = q.astype(np.int64) @ weight_q.T
    scale = (high - low) / np.float32(steps) * weight_scale[None, :]
    return acc.astype(np.float32) * scale + bias


def run_fixed(ops: Any, put: Any, x: Any, weight: Any, bias: Any, fixed: Any) -> Any:
    weights = ops.prepare_linear(weight, bias, name="test", input_range=fixed)
    with ops.stream(alone=True) as running:
        return running.download(running.linear(put(running, x), weights))


@pytest.mark.parametrize("fixed", [(-2.5, 3.0), (-0.17, 6.0), (0.0, 1.0), (-1e4, 1e4)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fixed_range_saturates_and_is_exact_within(
    isa: str, make_ops: Any, reference: Any, shape: tuple[int, int, int], fixed: Any
) -> None:
    rows, out_features, in_features = shape
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    x[:, ::50] *= 20  # most of them beyond
    x[0, 0] = 3e38
    x[-1, -1] = -3e38
    weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
    bias = rng.standard_normal(out_features).astype(np.float32)
    ops = make_ops("int8", isa=isa)
    out = run_fixed(ops, reference.put, x, weight, bias, fixed)
    assert out.tobytes() == fixed_integers(x, weight, bias, steps_of(isa), fixed).tobytes()
    alone = [run_fixed(ops, reference.put, row[None], weight, bias, fixed) for row in x[:9]]
    assert np.concatenate(alone).tobytes() == out[:9].tobytes()


@pytest.mark.parametrize(
    ("fixed", "expected"), [((0.0, 1e-38), 2.0), ((-3e38, 3e38), np.nan)], ids=str
)
def test_a_fixed_range_without_steps_is_one_of_zeros_or_undefined(
    isa: str, make_ops: Any, reference: Any, fixed: tuple[float, float], expected: float
) -> None:
    """As a row of such a range: 255 steps of it, or one of them, are no float32."""
    x = np.random.default_rng(6).standard_normal((3, 40)).astype(np.float32)
    bias = np.full(9, 2.0, np.float32)
    out = run_fixed(make_ops("int8", isa=isa), reference.put, x, x[:1].repeat(9, 0), bias, fixed)
    np.testing.assert_array_equal(out, np.full((3, 9), expected, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_fixed_range_does_not_hide_what_is_not_finite(
    isa: str, make_ops: Any, reference: Any, bad: float
) -> None:
    x = np.random.default_rng(2).standard_normal((5, 37)).astype(np.float32)
    weight = np.random.default_rng(3).standard_normal((20, 37)).astype(np.float32)
    ops = make_ops("int8", isa=isa)
    clean = run_fixed(ops, reference.put, x, weight, None, (-3.0, 3.0))
    x[2, 36] = bad
    out = run_fixed(ops, reference.put, x, weight, None, (-3.0, 3.0))
    assert np.isnan(out[2]).all()
    assert np.delete(out, 2, 0).tobytes() == np.delete(clean, 2, 0).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_float_formats_leave_a_fixed_range_aside(make_ops: Any, reference: Any, dtype: str) -> None:
    if not loader.available()[0]:
        pytest.skip(loader.available()[1])
    x = np.random.default_rng(4).standard_normal((5, 40)).astype(np.float32)
    weight = np.random.default_rng(5).standard_normal((9, 40)).astype(np.float32)
    ops = make_ops(dtype)
    found = run_fixed(ops, reference.put, x, weight, None, (-0.1, 0.1))
    assert found.tobytes() == run(ops, reference.put, x, weight, None).tobytes()
