"""CpuOps: a whole encoder in any batch, refusals, choice of path and format."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import pytest

from minibert.batch import pack
from minibert.errors import DeviceError, DeviceOptionError, InputError
from minibert.kernels.cpu import loader
from minibert.ops.cpu import CpuArray, CpuOps, available
from minibert.ops.cpu_operands import linear_format
from minibert.ops.reference import ReferenceOps
from minibert.ops.select import make_ops
from tests.cpu_encoder import PATHS, Encoder, needs_kernels, texts


# ---- results -----------------------------------------------------------------------------------
@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_a_text_has_the_same_bytes_alone_in_any_batch_and_order(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    made = CpuOps(dtype, isa=isa)
    encoder = Encoder(made)
    sequences = texts(2, [1, 2, 5, 9, 30, 31, 64, 100, 257])
    expected = [encoder(made, pack([ids])).tobytes() for ids in sequences]
    for _ in range(6):
        chosen = rng.permutation(len(sequences))[: rng.integers(1, len(sequences) + 1)]
        batch = pack([sequences[i] for i in chosen])
        for alone in (False, True):
            rows = encoder(made, batch, alone=alone)
            assert [row.tobytes() for row in rows] == [expected[i] for i in chosen]
    made.close()


@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_encoder_is_as_close_to_float64_as_its_precision_says(isa: str, precision: str) -> None:
    exact_ops, plain_ops = ReferenceOps("float64"), ReferenceOps("float32")
    batch = pack(texts(3, [3, 50, 17, 200]))
    exact = Encoder(exact_ops)(exact_ops, batch)
    plain = np.abs(Encoder(plain_ops)(plain_ops, batch) - exact).max()
    made = CpuOps(matmul_precision=precision, isa=isa)
    error = np.abs(Encoder(made)(made, batch) - exact).max()
    made.close()
    # Operands of one and two bfloat16 parts are off by 2^-9 and 2^-17 of a value: that many times
    # the 2^-25 of float32, and what the other products drop, which is as much again.
    factor = {"float32": 1, "bfloat16x6": 1, "bfloat16x3": 2 * 2**8, "bfloat16x1": 2 * 2**16}
    assert error <= 2 * factor[made.format] * plain + 2.0**-24


@needs_kernels
def test_int8_keeps_the_direction_of_every_vector() -> None:
    exact_ops = ReferenceOps("float64")
    batch = pack(texts(4, [3, 50, 17, 200]))
    exact = Encoder(exact_ops)(exact_ops, batch)
    made = CpuOps("int8")
    cosines = (Encoder(made)(made, batch) * exact).sum(axis=1)
    made.close()
    assert cosines.min() >= 0.995  # what the project asks of int8


@needs_kernels
@pytest.mark.parametrize(
    "isas",
    [
        [n for n in PATHS if n in ("avx2", "avx512")],
        [n for n in PATHS if n not in ("avx2", "avx512")],
    ],
    ids=["127 steps", "255 steps"],
)
def test_paths_with_the_same_steps_give_the_same_int8_sums(isas: list[str]) -> None:
    # One linear layer without activation is free of rounding that differs between paths.
    if not isas:
        pytest.skip("no such path here")
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((70, 200)).astype(np.float32)
    tables = [rng.standard_normal((100, 200)).astype(np.float32)]
    results = set()
    for isa in isas:
        made = CpuOps("int8", isa=isa)
        prepared = made.prepare_linear(weight, None, name="test")
        embedding = made.prepare_embedding(tables[0])
        with made.stream(alone=False) as running:
            hidden = running.embed(
                running.upload(pack(texts(5, [40]))), [embedding, None, None], None
            )
            results.add(running.download(running.linear(hidden, prepared)).tobytes())
        made.close()
    assert len(results) == 1


# ---- refusals ----------------------------------------------------------------------------------
@needs_kernels
def test_calls_outside_a_stream_and_after_close_are_refused(ops: CpuOps) -> None:
    with ops.stream(alone=False) as running:
        rows = CpuArray(running._state.memory, 1, 8)  # type: ignore[union-attr]
    with pytest.raises(DeviceError, match=r"inside `with ops.stream"):
        ops.normalize(rows)
    ops.close()
    with pytest.raises(DeviceError, match="was closed"):
        with ops.stream(alone=False):
            pass


@needs_kernels
def test_arguments_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"dtype must be one of float32, .*got 'float8'"):
        CpuOps("float8")
    with pytest.raises(DeviceError, match="matmul_precision must be one of highest, high, medium"):
        CpuOps(matmul_precision="low")
    with pytest.raises(DeviceError, match="threads must be at least 1, got 0"):
        CpuOps(threads=0)
    monkeypatch.setenv(loader.ISA_VARIABLE, "sse9")
    with pytest.raises(DeviceError, match=r"MINIBERT_CPU_ISA must be one of .*, got 'sse9'"):
        CpuOps()
    assert available() == (False, available()[1])
    for device in ("cpu", "auto"):  # not NumPy, which would be slow and say nothing
        with pytest.raises(DeviceOptionError, match=r"MINIBERT_CPU_ISA must be one of"):
            make_ops(device)
    with pytest.raises(DeviceError, match=r"^isa must be one of .*, got 'sse10'"):
        CpuOps(isa="sse10")


@needs_kernels
def test_shapes_that_do_not_fit_are_refused(ops: CpuOps) -> None:
    weights = ops.prepare_linear(np.zeros((4, 8), np.float32), None, name="test")
    norm = ops.prepare_layer_norm(np.ones(8, np.float32), None, eps=1e-5)
    with ops.stream(alone=False) as running:
        assert running._state is not None
        memory = running._state.memory
        batch = running.upload(pack(texts(9, [2])))
        nine = CpuArray(memory, 2, 9)
        with pytest.raises(InputError, match="hidden must have 8 columns, got 9"):
            running.linear(nine, weights)
        with pytest.raises(InputError, match=r"residual must be \(2, 4\)"):
            running.linear(CpuArray(memory, 2, 8), weights, residual=nine)
        with pytest.raises(InputError, match="hidden must have 8 columns, got 9"):
            running.layer_norm(nine, norm)
        with pytest.raises(InputError, match="qkv must have 24 columns"):
            running.attention(nine, batch, num_heads=1, head_dim=8, softmax_scale=1.0)
        with pytest.raises(InputError, match="head_dim must be a multiple of 8"):
            running.attention(nine, batch, num_heads=1, head_dim=3, softmax_scale=1.0)
        with pytest.raises(InputError, match="softmax_scale must be positive"):
            running.attention(nine, batch, num_heads=1, head_dim=8, softmax_scale=0.0)
        with pytest.raises(InputError, match="hidden must have 2 rows, got 3"):
            running.pool(CpuArray(memory, 3, 8), batch, "mean")
        with pytest.raises(InputError, match="arrays must have equal rows"):
            running.concatenate([nine, CpuArray(memory, 3, 1)])


@needs_kernels
def test_weights_whose_parts_do_not_fit_are_refused(ops: CpuOps) -> None:
    ones = np.ones((16, 8), np.float32)
    with pytest.raises(InputError, match=r"bias of test must be \(16,\), got \(3,\)"):
        ops.prepare_linear(ones, ones[0, :3], name="test")
    with pytest.raises(InputError, match=r"of one size, got \(\(8,\), \(3,\)\)"):
        ops.prepare_layer_norm(ones[0], ones[0, :3], eps=1e-5)
    wide, narrow = ops.prepare_embedding(ones), ops.prepare_embedding(np.ones((16, 4), np.float32))
    norm = ops.prepare_layer_norm(ones[0, :4], None, eps=1e-5)
    batch = pack(texts(9, [2]))
    for tables, of_four in (([wide, narrow, None], None), ([wide, None, None], norm)):
        with ops.stream(alone=False) as running:
            with pytest.raises(InputError, match=r"must be of one width, .* got \[8, 4\]"):
                running.embed(running.upload(batch), tables, of_four)
            with pytest.raises(InputError, match=r"must be of one width, .* got \[8, 4\]"):
                running.forward(
                    batch, lambda ops, b, t=tables, n=of_four: (ops.embed(b, t, n),), key="wrong"
                )


@needs_kernels
def test_weights_too_large_for_float16_are_refused_by_name() -> None:
    weight = np.ones((16, 8), np.float32)
    half = CpuOps("float16")
    weight[3, 2] = -65504.0
    half.prepare_linear(weight, None, name="fits")
    weight[3, 2] = -65520.0
    with pytest.raises(DeviceError, match="high must fit float16, its largest value is 65520"):
        half.prepare_linear(weight, None, name="high")
    CpuOps("bfloat16").prepare_linear(weight, None, name="high")


# ---- choosing a path and a format --------------------------------------------------------------
@needs_kernels
@pytest.mark.parametrize("isa", PATHS)
def test_the_environment_forces_a_path(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loader.ISA_VARIABLE, isa)
    assert CpuOps().path.name == isa
    assert available() == (True, f"path {isa}")


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="they are of x86-64")
def test_paths_in_software_are_in_the_build_under_test() -> None:
    wanted = {f"{path}-software" for path in ("avx2-vnni", "avx512-vnni", "amx", "neon-bf16")}
    assert wanted <= {path.name for path in loader.all_paths()}, (
        "build with MINIBERT_SOFTWARE_PATHS=1, as `make test` does: without, less is tested"
    )


@needs_kernels
def test_software_paths_are_never_chosen_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loader.ISA_VARIABLE, raising=False)
    assert not CpuOps().path.name.endswith("-software")


def test_formats_by_dtype_and_precision() -> None:
    vectors = ("float32", "bfloat16", "float16", "int8")
    tiles = (*vectors, "bfloat16x1", "bfloat16x3", "bfloat16x6")
    for precision in ("highest", "high", "medium"):
        assert linear_format("float32", precision, vectors) == "float32"
    assert linear_format("float32", "highest", tiles) == "bfloat16x6"
    assert linear_format("float32", "high", tiles) == "bfloat16x3"
    assert linear_format("float32", "medium", tiles) == "bfloat16x1"
    assert linear_format("bfloat16", "highest", vectors) == "bfloat16"
    assert linear_format("bfloat16", "highest", tiles) == "bfloat16x1"
    assert linear_format("int8", "highest", tiles) == "int8"
    with pytest.raises(DeviceError, match="dtype int8 is not supported on this path"):
        linear_format("int8", "highest", ("float32",))


def test_without_the_extension_the_module_imports_and_says_why() -> None:
    code = (
        "import sys; sys.modules['minibert.kernels.cpu._native'] = None\n"
        "from minibert.ops.cpu import CpuOps, available\n"
        "from minibert.errors import DeviceError\n"
        "built, reason = available()\n"
        "assert not built and 'compiler' in reason, reason\n"
        "try: CpuOps()\n"
        "except DeviceError as error: assert 'compiler' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
