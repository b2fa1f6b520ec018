"""int8 linear layers: exact integers, the quantisation error expected and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.errors import DeviceError
from minibert.kernels.cpu import loader

SHAPES = [(1, 1, 1), (1, 384, 384), (5, 33, 67), (19, 96, 384), (100, 40, 1536), (7, 17, 3)]


def quantize_rows(x: Any) -> tuple[Any, Any, Any]:
    """float32 rows to (q, act_scale, zero_point), one NumPy operation per step of the kernel."""
    low = np.minimum(x.min(axis=1), 0).astype(np.float32)
    high = np.maximum(x.max(axis=1), 0).astype(np.float32)
    spread = high - low
    steps = np.divide(np.float32(255), spread, where=spread > 0, out=np.zeros_like(spread))
    zero_point = np.rint(-low * steps)
    q = np.clip(np.rint(x * steps[:, None]) + zero_point[:, None], 0, 255)
    return q.astype(np.int64), spread / np.float32(255), zero_point.astype(np.int64)


def quantize_weight(weight: Any) -> tuple[Any, Any]:
    largest = np.abs(weight).max(axis=1)
    steps = np.divide(np.float32(127), largest, where=largest > 0, out=np.zeros_like(largest))
    return np.rint(weight * steps[:, None]).astype(np.int64), largest / np.float32(127)


def integers(x: Any, weight: Any, bias: Any) -> Any:
    """What int8 must give, float32: exact integer sums, then two roundings and the bias."""
    q, act_scale, zero_point = quantize_rows(x)
    weight_q, weight_scale = quantize_weight(weight)
    acc = (q - zero_point[:, None]) @ weight_q.T
    assert np.abs(q @ weight_q.T).max() < 2**31
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
    assert out.tobytes() == integers(x, weight, bias).tobytes()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("in_features", [2, 4, 64, 3072])
def test_extreme_values_do_not_saturate(
    isa: str, make_ops: Any, reference: Any, sign: int, in_features: int
) -> None:
    # Every product is 255 * 127 of one sign: two of them pass the largest int16.
    x = np.full((7, in_features), 255.0, np.float32)
    weight = np.full((33, in_features), sign * 127.0, np.float32)
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, np.zeros(33, np.float32))
    assert (out == sign * 255 * 127 * in_features).all()


def test_rows_of_one_sign_use_all_steps(isa: str, make_ops: Any, reference: Any) -> None:
    # Rows such as GELU leaves: from -0.17 up. An error of half a step per value is what 256 steps
    # over the row's range must give.
    rng = np.random.default_rng(1)
    x = np.maximum(rng.standard_normal((20, 300)), -0.17).astype(np.float32)
    weight = np.eye(300, dtype=np.float32)
    out = run(make_ops("int8", isa=isa), reference.put, x, weight, np.zeros(300, np.float32))
    step = (x.max(axis=1) - x.min(axis=1)) / 255
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
    with pytest.raises(DeviceError, match=r"deep.*in_features must be at most 65536.*65537"):
        ops.prepare_linear(np.zeros((1, 65537), np.float32), None, name="deep")


def test_every_path_has_int8() -> None:
    if not loader.available()[0]:
        pytest.skip(loader.available()[1])
    assert all("int8" in path.formats for path in loader.all_paths())
