"""The Arm paths, cross-compiled and run under user-mode emulation.

Needs `aarch64-linux-gnu-g++` and `qemu-aarch64` (Debian and Ubuntu: apt-get install
g++-aarch64-linux-gnu qemu-user); without them the tests are skipped and say so.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.cpu.native_runner import SOURCE, build
from tests.kernels.cpu.native_runner import run as run_native

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
PATHS = {
    "neon": ("path_neon", ()),
    "neon-dotprod": ("path_neon_dotprod", ("-march=armv8.2-a+dotprod",)),
    "neon-i8mm": ("path_neon_i8mm", ("-march=armv8.2-a+dotprod+i8mm",)),
}
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(
        not (SOURCE / "operators.cpp").is_file(), reason="the C++ sources are not installed"
    ),
]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("-O2",)
    paths = {name: (*flags, *march) for name, march in PATHS.values()}
    folder = tmp_path_factory.mktemp("aarch64")
    return build(folder, COMPILER, paths, flags=flags, link=("-static",))


def run(runner: Path, *arguments: Any, arrays: tuple[Any, ...] = ()) -> Any:
    return run_native([EMULATOR, "-cpu", "max", str(runner)], *arguments, arrays=arrays)


def test_the_emulated_processor_offers_every_arm_path(runner: Path) -> None:
    command = [EMULATOR, "-cpu", "max", str(runner), "paths"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert output.split() == ["neon-i8mm", "neon-dotprod", "neon", "portable"]


@pytest.mark.parametrize("shape", [(1, 384, 384), (7, 33, 100), (100, 35, 769)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_linear_is_as_exact_as_float32(
    runner: Path, reference: Any, shape: tuple[int, int, int], threads: int
) -> None:
    rng = np.random.default_rng(0)
    rows, out_features, in_features = shape
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    x[:, ::30] *= 20
    weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
    bias = rng.standard_normal(out_features).astype(np.float32)
    residual = rng.standard_normal((rows, out_features)).astype(np.float32)
    arrays = (x, weight, bias, residual)
    out = run(runner, "neon", threads, "linear", "float32", *shape, 1, 1, arrays=arrays)

    def compute(dtype: Any) -> Any:
        h, w, b, r = (array.astype(dtype) for array in arrays)
        return reference.activate(h @ w.T + b, "gelu") + r

    reference.assert_close(out.reshape(rows, -1), compute(np.float32), compute(np.float64))


@pytest.mark.parametrize("threads", [1, 3])
def test_block_linear_is_as_exact_as_float32(runner: Path, reference: Any, threads: int) -> None:
    rng = np.random.default_rng(2)
    rows, out_features, in_features = 23, 37, 800
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
    kept = [rng.permutation(in_features)[:400] for _ in range(0, out_features, 16)]
    for panel, places in enumerate(kept):
        weight[16 * panel : 16 * panel + 16, np.setdiff1d(np.arange(in_features), places)] = 0
    arrays = (x, weight, rng.standard_normal(out_features), rng.standard_normal((rows, 37)))
    shape = rows, out_features, in_features
    out = run(runner, "neon", threads, "linear", "float32-block", *shape, 1, 1, arrays=arrays)

    def compute(dtype: Any) -> Any:
        h, w, b, r = (array.astype(np.float32).astype(dtype) for array in arrays)
        panels = [
            h[:, places] @ w[16 * panel : 16 * panel + 16, places].T
            for panel, places in enumerate(kept)
        ]
        return reference.activate(np.concatenate(panels, axis=1) + b, "gelu") + r

    reference.assert_close(out.reshape(rows, -1), compute(np.float32), compute(np.float64))


@pytest.mark.parametrize("path", ["portable", *PATHS])
def test_int8_sums_are_exact(runner: Path, path: str) -> None:
    # Extreme values: 255 * 127 * 70 in every sum, of either sign.
    x = np.full((9, 70), 255.0)
    weight = np.where(np.arange(21)[:, None] % 2, 127.0, -127.0) * np.ones((21, 70))
    out = run(runner, path, 1, "linear", "int8", 9, 21, 70, 0, 0, arrays=(x, weight, np.zeros(21)))
    assert (out.reshape(9, 21) == 255 * weight.sum(axis=1)).all()


def test_int8_gives_the_same_bytes_on_every_path(runner: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = (rng.standard_normal((20, 99)), rng.standard_normal((30, 99)), np.zeros(30))
    results = {
        run(runner, path, 2, "linear", "int8", 20, 30, 99, 0, 0, arrays=arrays).tobytes()
        for path in ("portable", *PATHS)
    }
    assert len(results) == 1


@pytest.mark.parametrize("format_", ["bfloat16", "float16"])
def test_narrow_weights(runner: Path, format_: str) -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((5, 50)), rng.standard_normal((20, 50))
    out = run(
        runner, "neon", 1, "linear", format_, 5, 20, 50, 0, 0, arrays=(x, weight, np.zeros(20))
    )
    unit = {"bfloat16": 2.0**-9, "float16": 2.0**-12}[format_]  # half a unit in the last place
    bound = np.abs(x) @ np.abs(weight).T * (unit * 2 + 1e-6)
    assert (np.abs(out.reshape(5, 20) - x @ weight.T) <= bound).all()


@pytest.mark.parametrize("head_dim", [8, 32, 40])
def test_attention_is_as_exact_as_float32(runner: Path, reference: Any, head_dim: int) -> None:
    seqlens = [1, 30, 270, 7]
    qkv = np.random.default_rng(3).standard_normal((308, 6 * head_dim)).astype(np.float32)
    out = run(runner, "neon", 2, "attention", 2, head_dim, *seqlens, arrays=(qkv,))
    args = (np.cumsum([0, *seqlens]), 2, head_dim, 1 / head_dim)
    reference.assert_close(
        out.reshape(308, -1),
        reference.attention(qkv, *args),
        reference.attention(qkv.astype(np.float64), *args),
    )


@pytest.mark.parametrize("hidden_size", [3, 384])
def test_layer_norm_is_as_exact_as_float32(runner: Path, reference: Any, hidden_size: int) -> None:
    rng = np.random.default_rng(4)
    arrays = [
        rng.standard_normal(s).astype(np.float32)
        for s in ((9, hidden_size), hidden_size, hidden_size)
    ]
    out = run(runner, "neon", 1, "layer_norm", 9, hidden_size, arrays=tuple(arrays))
    wide = [array.astype(np.float64) for array in arrays]
    reference.assert_close(
        out.reshape(9, -1),
        reference.layer_norm(*arrays, 1e-5),
        reference.layer_norm(*wide, 1e-5),
    )


@pytest.mark.parametrize("code", [-1, 1, 2, 3, 4, 5])
def test_elementary_functions_agree_with_numpy(runner: Path, reference: Any, code: int) -> None:
    values = np.linspace(-20, 20, 4001, dtype=np.float32)
    out = run(runner, "neon", 1, "elementwise", code, values.size, arrays=(values,))
    names = {1: "gelu", 2: "gelu_tanh", 3: "relu", 4: "silu", 5: "tanh"}
    wide = values.astype(np.float64)
    exact = np.exp(wide) if code < 0 else reference.activate(wide, names[code])
    # Per path, errors are measured in test_elementary.py; this is the same code with other vectors.
    assert (np.abs(out - exact) <= 8 * 2.0**-24 * np.maximum(np.abs(exact), 2.0**-6)).all()
