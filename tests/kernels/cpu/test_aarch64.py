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

from minibert.kernels.cpu import loader
from tests.kernels.cpu.native_runner import SOURCE, build
from tests.kernels.cpu.native_runner import run as run_native

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
PATHS = {
    "neon": ("path_neon", ()),
    "neon-dotprod": ("path_neon_dotprod", ("-march=armv8.2-a+dotprod",)),
    "neon-i8mm": ("path_neon_i8mm", ("-march=armv8.2-a+dotprod+i8mm",)),
    "neon-bf16": ("path_neon_bf16", ("-march=armv8.2-a+dotprod+i8mm+bf16",)),
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
    assert output.split() == ["neon-bf16", "neon-i8mm", "neon-dotprod", "neon", "portable"]


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
        return reference.activate(reference.multiply(h, w) + b, "gelu") + r

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
            reference.multiply(h[:, places], w[16 * panel : 16 * panel + 16, places])
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


def operands(rows: int, out_features: int, in_features: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(rows * in_features)
    x = rng.standard_normal((rows, in_features))
    x[:, ::30] *= 20
    weight = rng.standard_normal((out_features, in_features)) / np.sqrt(in_features)
    bias, residual = rng.standard_normal(out_features), rng.standard_normal((rows, out_features))
    return tuple(array.astype(np.float32) for array in (x, weight, bias, residual))


# One row without a partner, one output, off every tile, several breaks of the sums and row blocks.
MATRIX_SHAPES = [(1, 1, 1), (1, 384, 384), (3, 5, 7), (7, 33, 100), (21, 20, 1538), (101, 9, 130)]
MATRIX_FORMATS = ["bfloat16x1", "bfloat16x3"]


@pytest.mark.parametrize("format_", MATRIX_FORMATS)
@pytest.mark.parametrize("shape", MATRIX_SHAPES, ids=str)
def test_matrix_instructions_are_within_their_bound(
    runner: Path, format_: str, shape: tuple[int, int, int]
) -> None:
    x, weight, bias, residual = operands(*shape)
    out = run(
        runner,
        *("neon-bf16", 2, "linear", format_, *shape, 0, 1),
        arrays=(x, weight, bias, residual),
    ).reshape(residual.shape)
    x, weight, bias, residual = (array.astype(np.float64) for array in (x, weight, bias, residual))
    products = np.abs(x) @ np.abs(weight).T
    # Operands are off by half a unit in their last place, 2^-9 (one part) or 2^-18 (two), and two
    # parts leave out the product of both second parts, 2^-18. A chain has 128 inputs, each half an
    # addition a product, and one unit a rounding; then one addition a chain, bias and residual.
    left_out = {"bfloat16x1": 2 * 2.0**-9 + 2.0**-18, "bfloat16x3": 3.03 * 2.0**-18}[format_]
    additions = {"bfloat16x1": 64, "bfloat16x3": 192}[format_] + 2 + -(-shape[2] // 128) + 2
    rounding = additions * 2.0**-23 * (products + np.abs(bias) + np.abs(residual))
    bound = left_out * products + rounding
    assert (np.abs(out - (x @ weight.T + bias + residual)) <= bound).all()


@pytest.mark.parametrize(
    ("path", "format_"),
    [(path, format_) for path in PATHS for format_ in ("float32", "int8")]
    + [("neon-bf16", format_) for format_ in MATRIX_FORMATS],
)
def test_a_row_has_the_same_bytes_in_any_batch(runner: Path, path: str, format_: str) -> None:
    rng = np.random.default_rng(6)
    x, weight, bias, residual = operands(103, 21, 300)

    def some(rows: Any, threads: int) -> Any:
        shape = len(rows), 21, 300
        arrays = (x[rows], weight, bias, residual[rows])
        out = run(runner, path, threads, "linear", format_, *shape, 1, 1, arrays=arrays)
        return out.reshape(len(rows), 21)

    whole = some(np.arange(103), 1)
    for size, threads in ((1, 1), (2, 3), (9, 1), (102, 3)):
        rows = rng.permutation(103)[:size]
        assert some(rows, threads).tobytes() == whole[rows].tobytes()


software = pytest.mark.skipif(
    not loader.available()[0]
    or "neon-bf16-software" not in [p.name for p in loader.all_paths() if p.supported],
    reason="no path neon-bf16-software here to compare with",
)


@software
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu", "tanh"])
@pytest.mark.parametrize(
    ("dtype", "precision", "format_"),
    [
        ("float32", "highest", "float32"),
        ("float32", "high", "bfloat16x3"),
        ("float32", "medium", "bfloat16x1"),
        ("bfloat16", "highest", "bfloat16x1"),
        ("float16", "highest", "float16"),
        ("int8", "highest", "int8"),
    ],
)
def test_the_software_meaning_gives_the_instructions_bytes(
    runner: Path,
    make_ops: Any,
    reference: Any,
    dtype: str,
    precision: str,
    format_: str,
    activation: str | None,
) -> None:
    shape = 23, 21, 393
    arrays = x, weight, bias, residual = operands(*shape)
    names = [None, "gelu", "gelu_tanh", "relu", "silu", "tanh"]
    code = names.index(activation)
    out = run(runner, "neon-bf16", 1, "linear", format_, *shape, code, 1, arrays=arrays)
    ops = make_ops(dtype, matmul_precision=precision, isa="neon-bf16-software", threads=1)
    assert ops.format == format_
    weights = ops.prepare_linear(weight, bias, name="test")
    with ops.stream(alone=False) as running:
        added = reference.put(running, residual)
        hidden = reference.put(running, x)
        expected = running.download(
            running.linear(hidden, weights, activation=activation, residual=added)
        )
    assert out.tobytes() == expected.tobytes()


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
