"""Runs every kernel test once per instruction-set path that this machine can run.

Paths in software ("-software") are among them: they run the indexing and the arithmetic of
instructions that the machine may lack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minibert.kernels.cpu import loader
from minibert.ops.cpu import CpuOps
from tests.cpu_encoder import put

BUILT = loader.available()[0]
PATHS = [path for path in loader.all_paths() if path.supported] if BUILT else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`isa` is every path; the others are those that have a kernel for a format.

    `words_isa`: those whose attention multiplies 16-bit integers; `tile_isa`: on matrix units.
    """

    def having(format_: str) -> list[loader.CpuPath]:
        return [path for path in PATHS if format_ in path.formats]

    plain_bfloat16 = [path for path in having("bfloat16") if path not in having("bfloat16x1")]
    choices = {
        "isa": PATHS,
        "block_isa": having("float32-block"),
        "bfloat16_isa": plain_bfloat16,  # those that widen it, and do not multiply it as it is
        "float16_isa": having("float16"),
        "words_isa": [path for path in PATHS if path.name.startswith("avx")],
        "tile_isa": [path for path in PATHS if path.name.startswith("amx")],
    }
    for name, paths in choices.items():
        if name not in metafunc.fixturenames:
            continue
        if BUILT:
            metafunc.parametrize(name, [path.name for path in paths])
        else:
            reason = pytest.mark.skip(reason=loader.available()[1])
            metafunc.parametrize(name, [pytest.param("none", marks=reason)])


@pytest.fixture
def make_ops() -> Iterator[Callable[..., CpuOps]]:
    """CpuOps(*args, **kwargs), closed after the test."""
    made: list[CpuOps] = []

    def make(*args: Any, **kwargs: Any) -> CpuOps:
        made.append(CpuOps(*args, **kwargs))
        return made[-1]

    yield make
    for ops in made:
        ops.close()


def activate(x: Any, name: str | None) -> Any:
    """Activations as in their papers, at the precision of x."""
    if name is None:
        return x
    if name == "gelu":
        erfc = np.vectorize(math.erfc, otypes=[np.float64])
        return x * (0.5 * erfc(-np.asarray(x, np.float64) / math.sqrt(2.0))).astype(x.dtype)
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-x))
    return np.tanh(x)


def multiply(x: Any, weight: Any) -> Any:
    """x @ weight.T at the precision of x; in float32 a multiply-add after the other, each rounded.

    A BLAS would not do: how it splits its sums, and with that its error, differs between machines.
    """
    if x.dtype != np.float32:
        return x @ weight.T
    wide, wide_weight = x.astype(np.float64), weight.astype(np.float64)
    out = np.zeros((len(x), len(weight)), np.float32)
    for k in range(x.shape[1]):  # a product of two float32 is exact in float64
        out = (out + wide[:, k, None] * wide_weight[:, k]).astype(np.float32)
    return out


def attention(qkv: Any, cu_seqlens: Any, num_heads: int, head_dim: int, scale: float) -> Any:
    """softmax(scale * Q K^T) V per sequence and head, at the precision of qkv."""
    out = np.zeros((qkv.shape[0], num_heads * head_dim), qkv.dtype)
    parts = qkv.reshape(-1, 3, num_heads, head_dim)
    for begin, end in itertools.pairwise(cu_seqlens):
        query, key, value = parts[begin:end].transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1) * qkv.dtype.type(scale)
        scores -= scores.max(axis=-1, keepdims=True)
        probs = np.exp(scores)
        probs /= probs.sum(axis=-1, keepdims=True)
        out[begin:end] = (probs @ value).transpose(1, 0, 2).reshape(end - begin, -1)
    return out


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    mean = x.mean(axis=-1, keepdims=True)
    variance = np.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + x.dtype.type(eps)) * weight + bias


def assert_close(out: Any, plain: Any, exact: Any) -> None:
    """At most twice the error of plain low precision, both against float64.

    One rounding of the largest value is allowed besides: where plain happens to be exact.
    """
    assert np.isfinite(out).all()
    assert exact.dtype == np.float64
    allowed = 2 * np.abs(plain - exact).max() + 2.0**-24 * np.abs(exact).max()
    error = np.abs(out - exact).max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


@pytest.fixture
def reference() -> SimpleNamespace:
    return SimpleNamespace(
        activate=activate,
        multiply=multiply,
        attention=attention,
        layer_norm=layer_norm,
        assert_close=assert_close,
        put=put,
    )
