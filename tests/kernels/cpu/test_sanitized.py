"""The kernels under the address, undefined-behaviour and thread sanitizers, without Python.

Every operator on every path that this machine runs, in sizes off the tiles: a report of a sanitizer
ends the program and fails the test, and the results must be the extension's bytes. `make sanitize`
runs more: the whole kernel tests in an instrumented extension.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.kernels.cpu import loader
from tests.cpu_encoder import PATHS, needs_kernels
from tests.kernels.cpu.native_runner import SOURCE, build, run

COMPILER = "g++"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
AVX512_VNNI = (*AVX512, "-mavx512vnni")
PATH_FLAGS = {
    "path_avx2": AVX2,
    "path_avx2_vnni": (*AVX2, "-mavxvnni"),
    "path_avx512": AVX512,
    "path_avx512_vnni": AVX512_VNNI,
    "path_amx": (*AVX512_VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "path_avx2_vnni_software": AVX2,
    "path_avx512_vnni_software": AVX2,
    "path_amx_software": AVX2,
    "path_neon_bf16_software": AVX2,
}
SANITIZERS = {
    "address,undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
HEADERS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")  # GCC 12 warns of its own AVX-512's
pytestmark = [
    needs_kernels,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"not installed: {COMPILER}"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="paths of x86-64 are built here"),
    pytest.mark.skipif(
        not (SOURCE / "operators.cpp").is_file(), reason="the C++ sources are not installed"
    ),
]


@pytest.fixture(scope="module", params=SANITIZERS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    sanitizer = SANITIZERS[request.param]
    # Optimised, the unrolled loops of the paths take six times as long to compile.
    instrumented = ("-O0", "-g", "-fno-omit-frame-pointer", *sanitizer)
    # Paths that the processor lacks are linked and not run.
    paths = {
        name: (*march, *HEADERS, *(instrumented if runs(name) else ("-O0",)))
        for name, march in PATH_FLAGS.items()
    }
    folder = tmp_path_factory.mktemp("sanitized")
    return [str(build(folder, COMPILER, paths, flags=instrumented, link=sanitizer))]


def runs(source: str) -> bool:
    return source.removeprefix("path_").replace("_", "-") in PATHS


def test_a_report_ends_the_program(tmp_path: Path) -> None:
    source = tmp_path / "bad.cpp"
    source.write_text("int main(int n, char**) { int a[2] = {}; return a[n * 5]; }")
    flags = SANITIZERS["address,undefined"]
    subprocess.run([COMPILER, *flags, source, "-o", tmp_path / "bad"], check=True)
    with pytest.raises(AssertionError, match=r"out of bounds|overflow"):
        run([str(tmp_path / "bad")])


def compare(
    isa: str,
    dtype: str,
    out: Any,
    compute: Callable[[Any], Any],
    make_ops: Any,
    precision: str = "highest",
) -> None:
    ops = make_ops(dtype, matmul_precision=precision, isa=isa, threads=1)
    with ops.stream(alone=False) as running:
        expected = running.download(compute(running))
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("shape", [(1, 3, 5), (23, 51, 393), (33, 40, 64)], ids=str)
def test_linear(
    runner: list[str],
    isa: str,
    make_ops: Any,
    reference: Any,
    dtype: str,
    shape: tuple[int, int, int],
) -> None:
    rng = np.random.default_rng(0)
    rows, out_features, in_features = shape
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    x[:, ::30] *= 20
    weight = rng.standard_normal((out_features, in_features)).astype(np.float32)
    bias = rng.standard_normal(out_features).astype(np.float32)
    residual = rng.standard_normal((rows, out_features)).astype(np.float32)
    arrays = (x, weight, bias, residual)
    format_ = make_ops(dtype, isa=isa).format
    out = run([*runner, isa], 2, "linear", format_, *shape, 1, 1, arrays=arrays)

    def compute(ops: Any) -> Any:
        prepared = ops.prepare_linear(weight, bias, name="test")
        added = reference.put(ops, residual)
        return ops.linear(reference.put(ops, x), prepared, activation="gelu", residual=added)

    compare(isa, dtype, out, compute, make_ops)


@pytest.mark.parametrize(
    ("dtype", "precision", "op"),
    [
        ("float32", "highest", "attention"),
        ("float32", "high", "attention_split"),
        ("int8", "highest", "attention_narrow"),
    ],
)
def test_attention(
    runner: list[str],
    isa: str,
    make_ops: Any,
    reference: Any,
    dtype: str,
    precision: str,
    op: str,
) -> None:
    seqlens, heads, head_dim = [1, 30, 270, 7], 2, 40
    qkv = np.random.default_rng(3).standard_normal((308, 3 * heads * head_dim)).astype(np.float32)
    out = run([*runner, isa], 2, op, heads, head_dim, *seqlens, arrays=(qkv,))

    def compute(ops: Any) -> Any:
        batch = ops.upload(pack([np.zeros(n, np.int32) for n in seqlens]))
        return ops.attention(
            reference.put(ops, qkv),
            batch,
            num_heads=heads,
            head_dim=head_dim,
            softmax_scale=float(np.float32(1) / np.float32(head_dim)),
        )

    compare(isa, dtype, out, compute, make_ops, precision)


@pytest.mark.parametrize("hidden_size", [3, 384, 401])
def test_layer_norm(
    runner: list[str], isa: str, make_ops: Any, reference: Any, hidden_size: int
) -> None:
    rng = np.random.default_rng(4)
    shapes = ((9, hidden_size), hidden_size, hidden_size)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    out = run([*runner, isa], 2, "layer_norm", 9, hidden_size, arrays=(x, weight, bias))

    def compute(ops: Any) -> Any:
        return ops.layer_norm(
            reference.put(ops, x), ops.prepare_layer_norm(weight, bias, eps=float(np.float32(1e-5)))
        )

    compare(isa, "float32", out, compute, make_ops)


@pytest.mark.parametrize("code", [-1, 1, 2, 3, 4, 5])
def test_elementary_functions(runner: list[str], isa: str, code: int) -> None:
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3e38]
    values = np.array([*np.linspace(-200, 200, 997), *special], np.float32)
    out = run([*runner, isa], 1, "elementwise", code, values.size, arrays=(values,))
    native = loader.native()
    expected = values.copy()
    index = loader.choose_path(isa).index
    native.elementwise(index, expected.ctypes.data, expected.size, code)
    assert out.tobytes() == expected.tobytes()
