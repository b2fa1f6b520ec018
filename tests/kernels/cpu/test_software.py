"""The software meaning of the vectors is the instructions' meaning: equal bytes, not just close.

Eight lanes in software against AVX2, wherever AVX2 is there: the same headers, compiled against the
two implementations of `Vec`. Wider vectors differ from these eight lanes in a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.kernels.cpu import loader

PAIR = ("avx2", "avx2-vnni-software")


def supported() -> bool:
    return loader.available()[0] and set(PAIR) <= {
        path.name for path in loader.all_paths() if path.supported
    }


pytestmark = pytest.mark.skipif(not supported(), reason="no AVX2 here to compare with")


def both(make_ops: Any, compute: Callable[[Any], Any], dtype: str = "float32") -> None:
    results = []
    for isa in PAIR:
        with make_ops(dtype, isa=isa, threads=1).stream(alone=False) as running:
            results.append(running.download(compute(running)).tobytes())
    assert results[0] == results[1]


# int8 is not among them: AVX2 has other steps than VNNI, and test_int8.py knows both exactly.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu", "tanh"])
def test_linear(make_ops: Any, reference: Any, dtype: str, activation: Any) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((23, 777)) * 3).astype(np.float32)
    weight = (rng.standard_normal((51, 777)) / 9).astype(np.float32)

    def compute(running: Any) -> Any:
        prepared = running.prepare_linear(weight, weight[:, 0], name="test")
        rows = reference.put(running, x)
        residual = reference.put(running, x[:, :51])
        return running.linear(rows, prepared, activation=activation, residual=residual)

    both(make_ops, compute, dtype)


@pytest.mark.parametrize("head_dim", [8, 32, 40, 128])
def test_attention(make_ops: Any, reference: Any, head_dim: int) -> None:
    seqlens = [1, 30, 300, 7]
    qkv = np.random.default_rng(1).standard_normal((338, 6 * head_dim)).astype(np.float32)
    qkv[:, ::5] *= 20
    batch = pack([np.zeros(n, np.int32) for n in seqlens])
    both(
        make_ops,
        lambda running: running.attention(
            reference.put(running, qkv),
            running.upload(batch),
            num_heads=2,
            head_dim=head_dim,
            softmax_scale=head_dim**-0.5,
        ),
    )


@pytest.mark.parametrize("hidden_size", [5, 31, 384])
def test_layer_norm(make_ops: Any, reference: Any, hidden_size: int) -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((9, hidden_size)) + 5).astype(np.float32)
    weight = rng.standard_normal(hidden_size).astype(np.float32)
    both(
        make_ops,
        lambda running: running.layer_norm(
            reference.put(running, x), running.prepare_layer_norm(weight, weight, eps=1e-5)
        ),
    )


@pytest.mark.parametrize("code", [-1, 1, 2, 3, 4, 5])
def test_elementary_functions(code: int) -> None:
    values = np.concatenate(
        [
            np.linspace(-120, 120, 20001),
            np.geomspace(1e-38, 3e38, 2000),
            -np.geomspace(1e-38, 3e38, 2000),
            [0.0, -0.0, np.inf, -np.inf, np.nan],
        ]
    ).astype(np.float32)
    results = []
    for isa in PAIR:
        out = values.copy()
        index = loader.choose_path(isa).index
        loader.native().elementwise(index, out.ctypes.data, out.size, code)
        results.append(out)
    # Any NaN is as good as another: x86 and C do not promise its sign.
    np.testing.assert_array_equal(*results)
    numbers = ~np.isnan(results[0])
    assert results[0][numbers].tobytes() == results[1][numbers].tobytes()
