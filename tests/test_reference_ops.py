"""The NumPy ops against float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.errors import InputError
from minibert.kernels.cpu.loader import available
from minibert.ops.activations import activate
from minibert.ops.cpu import CpuOps
from minibert.ops.cuda import cuda_ops
from minibert.ops.interface import ForwardShape
from minibert.ops.reference import ReferenceOps
from tests import reference

RNG = np.random.default_rng(0)


def plain_gelu_float32(x: Any) -> Any:
    """The textbook formula, each step rounded to float32."""
    erf = np.vectorize(lambda v: np.float32(math.erf(v)), otypes=[np.float32])
    return x * np.float32(0.5) * (np.float32(1) + erf(x * np.float32(math.sqrt(0.5))))


def test_gelu_is_as_near_to_float64_as_the_formula_in_float32() -> None:
    x = np.concatenate([RNG.normal(0, 3, 50_000), np.linspace(-12, 12, 50_001)]).astype(np.float32)
    exact = reference.gelu(x)
    found = x.copy()
    activate(found, "gelu")
    plain = np.abs(plain_gelu_float32(x) - exact).max()
    assert np.abs(found - exact).max() <= 2 * plain


def test_gelu_is_not_the_tanh_approximation() -> None:
    x = np.linspace(-3, 3, 1001, dtype=np.float32)
    exact, tanh = x.copy(), x.copy()
    activate(exact, "gelu")
    activate(tanh, "gelu_tanh")
    assert np.abs(exact - tanh).max() > 1e-4
    assert np.abs(tanh - reference.gelu_tanh(x)).max() < 1e-6  # float32: some roundings at 3


def test_activations_take_extreme_values() -> None:
    x = np.array([-3e38, -1e4, -110, 0, 110, 1e4, 3e38], np.float32)
    for name in ("gelu", "gelu_tanh", "relu", "silu"):
        found = x.copy()
        with np.errstate(over="ignore"):
            activate(found, name)  # type: ignore[arg-type]
        assert np.array_equal(found, np.maximum(x, 0)), name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", 50, "input_ids must be from 0 to 49, got 50 at token 2"),
        ("input_ids", -1, "input_ids must be from 0 to 49, got -1 at token 2"),
        ("position_ids", 8, "position_ids must be from 0 to 7, got 8 at token 2"),
        ("token_type_ids", 2, "token_type_ids must be from 0 to 1, got 2 at token 2"),
    ],
)
@pytest.mark.parametrize("make", [ReferenceOps, CpuOps, partial(cuda_ops, "emulator", "float32")])
def test_an_id_outside_its_table_is_named(make: Any, name: str, value: int, message: str) -> None:
    if make is CpuOps and not available()[0]:
        pytest.skip("the CPU kernels are not built")
    ops = make()
    tables = [
        ops.prepare_embedding(RNG.normal(0, 1, (rows, 16)).astype(np.float32))
        for rows in (50, 8, 2)
    ]
    batch = pack([np.zeros(4, np.int32), np.zeros(3, np.int32)])
    batch.input_ids[5] = 77  # the first one is named
    getattr(batch, name)[2] = value
    with ops.stream(alone=False) as stream, pytest.raises(InputError, match=f"^{message}$"):
        stream.embed(stream.upload(batch), tables, None)
    ops.close()


@pytest.mark.parametrize("seqlens", [[1], [1, 1, 1], [512], [3, 70, 1, 200], [2000]])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 8), (3, 32)])
def test_attention_is_within_each_sequence(
    seqlens: list[int], num_heads: int, head_dim: int
) -> None:
    batch = pack([np.zeros(n, np.int32) for n in seqlens])
    qkv = RNG.normal(0, 1, (batch.num_tokens, 3 * num_heads * head_dim)).astype(np.float32)
    qkv[:: max(1, batch.num_tokens // 7)] *= 20
    scale = head_dim**-0.5
    exact = reference.attention(qkv, batch.cu_seqlens, num_heads, scale)
    with ReferenceOps().stream(alone=True) as ops:
        uploaded = ops.upload(batch)
        found = ops.attention(
            qkv, uploaded, num_heads=num_heads, head_dim=head_dim, softmax_scale=scale
        )
    # Scores reach 20 * 20 * sqrt(head_dim): their float32 rounding is that much larger than 2^-24.
    worst = np.abs(qkv).max() ** 2 * math.sqrt(head_dim) * 2.0**-24
    assert np.abs(found - exact).max() <= 8 * worst * np.abs(qkv).max()


def test_attention_ignores_other_sequences() -> None:
    batch = pack([np.zeros(n, np.int32) for n in (5, 9, 3)])
    qkv = RNG.normal(0, 1, (17, 96)).astype(np.float32)
    changed = qkv.copy()
    changed[5:14] = 1e6
    results = []
    for values in (qkv, changed):
        with ReferenceOps().stream(alone=True) as ops:
            uploaded = ops.upload(batch)
            results.append(
                ops.attention(values, uploaded, num_heads=2, head_dim=16, softmax_scale=0.25)
            )
    assert results[0][:5].tobytes() == results[1][:5].tobytes()
    assert results[0][14:].tobytes() == results[1][14:].tobytes()


@pytest.mark.parametrize(
    "mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
@pytest.mark.parametrize("skip", [0, 2])
def test_pooling_modes(mode: Any, skip: int) -> None:
    batch = pack([np.zeros(n, np.int32) for n in (3, 17, 512)], skip=[skip] * 3)
    hidden = RNG.normal(5, 1, (batch.num_tokens, 24)).astype(np.float32)
    with ReferenceOps().stream(alone=True) as ops:
        found = ops.pool(hidden, ops.upload(batch), mode)
    exact = reference.pool(hidden, batch.cu_seqlens, mode, batch.skip)
    # Sums are float64 inside, so only the result's own rounding is left.
    assert np.all(np.abs(found - exact) <= 2.0**-23 * np.abs(exact))


def test_layer_norm_far_from_zero_is_as_near_to_float64_as_plain_float32() -> None:
    import torch

    rows = (RNG.normal(0, 1, (300, 64)) + 1000).astype(np.float32)
    weight, bias = RNG.normal(1, 0.1, (2, 64)).astype(np.float32)
    ops = ReferenceOps()
    found = ops.layer_norm(rows, ops.prepare_layer_norm(weight, bias, eps=1e-12))
    exact = reference.layer_norm(rows, weight, bias, 1e-12)
    arguments = map(torch.from_numpy, (rows, weight, bias))
    plain = torch.nn.functional.layer_norm(next(arguments), (64,), *arguments, 1e-12).numpy()
    assert np.abs(found - exact).max() <= 2 * np.abs(plain - exact).max()


@pytest.mark.parametrize("make", [ReferenceOps, CpuOps, partial(cuda_ops, "emulator", "float16")])
def test_an_unknown_pattern_of_zeros_is_refused_alike(make: Callable[[], Any]) -> None:
    message = "sparsity of x must be one of None, 2:4, block, got '4:8'"
    with pytest.raises(InputError, match=message):
        make().prepare_linear(np.ones((16, 16), np.float32), None, name="x", sparsity="4:8")


def test_scratch_covers_what_a_pass_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    seqlens = [256] * 4 + [31] * 30
    batch = pack([np.zeros(n, np.int32) for n in seqlens])
    ops = ReferenceOps()
    d, f, heads = 64, 256, 4
    draw = lambda *shape: RNG.normal(0, 0.1, shape).astype(np.float32)  # noqa: E731
    qkv_weights = ops.prepare_linear(draw(3 * d, d), draw(3 * d), name="qkv")
    out_weights = ops.prepare_linear(draw(d, d), draw(d), name="out")
    wide_weights = ops.prepare_linear(draw(f, d), draw(f), name="wide")
    down_weights = ops.prepare_linear(draw(d, f), draw(d), name="down")
    norm = ops.prepare_layer_norm(draw(d), draw(d), eps=1e-5)
    table = ops.prepare_embedding(draw(10, d))

    def layer(ops: ReferenceOps, hidden: Any) -> Any:
        qkv = ops.linear(hidden, qkv_weights)
        context = ops.attention(qkv, batch, num_heads=heads, head_dim=16, softmax_scale=0.25)
        summed = ops.linear(context, out_weights, residual=hidden)
        return ops.layer_norm(summed, norm)

    def feed_forward(ops: ReferenceOps, hidden: Any) -> Any:
        wide = ops.linear(hidden, wide_weights, activation="gelu")
        summed = ops.linear(wide, down_weights, residual=hidden)
        return ops.layer_norm(summed, norm)

    shape = ForwardShape(batch.num_tokens, 256, len(seqlens), d, 3 * d, f, heads, 16)
    with ops.stream(alone=True) as stream:
        tracemalloc.start()
        hidden = stream.embed(stream.upload(batch), (table, None, None), norm)
        for _ in range(2):
            hidden = layer(stream, hidden)
            hidden = feed_forward(stream, hidden)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= ops.scratch_bytes(shape)
