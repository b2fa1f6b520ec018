"""The machine code of the path `amx`, run on processors without AMX.

Compiled as setup.py compiles it, so that what the compiler makes of the intrinsics is part of the
test: registers, addresses, the order of loads and stores. A processor without AMX refuses each of
its instructions, and a handler of the signal carries it out (amx_trap.h, tested by
test_amx_emulator.py). Results must be the bytes of `amx-software`, whose tiles are other code
(tiles_software.h).

On a processor with AMX nothing is refused: the same tests then compare its instructions with the
software meaning.
"""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from tests.kernels.cpu import amx_build
from tests.kernels.cpu.amx_build import COMPILER, HAS_AMX, HERE
from tests.kernels.cpu.native_runner import build, run

FORMATS = {
    "bfloat16x1": ("bfloat16", "highest"),
    "bfloat16x3": ("float32", "high"),
    "bfloat16x6": ("float32", "highest"),
    "int8": ("int8", "highest"),
}
pytestmark = amx_build.needed


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    recipe = amx_build.recipe()
    folder = tmp_path_factory.mktemp("trapped")
    # -fPIC: Python's build adds it for an extension.
    flags = (*recipe["COMMON_FLAGS"], "-fPIC", "-DAMX_TRAP")
    amx = (*flags, *recipe["PATHS_X86_64"]["amx"][0])
    absent = folder / "absent.cpp"
    others = {path: "" for path in recipe["PATHS_X86_64"] if path != "amx"}
    absent.write_text(recipe["stand_in"](others))
    trap = {HERE / "amx_trap.cpp": amx, absent: flags}
    program = build(folder, COMPILER, {"path_amx": amx}, flags=flags, link=(), others=trap)
    return [str(program), "--trap-amx", "amx"]


def operands(rows: int, out_features: int, in_features: int) -> tuple[Any, ...]:
    rng = np.random.default_rng((rows, out_features, in_features))
    x = rng.standard_normal((rows, in_features))
    x[:, ::30] *= 20  # so that int8 has values beyond its steps
    weight = rng.standard_normal((out_features, in_features)) / np.sqrt(in_features)
    bias, residual = rng.standard_normal(out_features), rng.standard_normal((rows, out_features))
    return tuple(array.astype(np.float32) for array in (x, weight, bias, residual))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 33, 70])
def test_linear_gives_the_bytes_of_the_software_tiles(
    runner: list[str], make_ops: Any, reference: Any, format_: str, rows: int
) -> None:
    dtype, precision = FORMATS[format_]
    ops = make_ops(dtype, matmul_precision=precision, isa="amx-software", threads=1)
    assert ops.format == format_
    # GELU takes large negative sums to nothing: every other shape is without.
    activations = (None, "gelu")
    shapes = [
        (rows, out_features, in_features)
        for out_features in (1, 31, 32, 33, 96)
        for in_features in (1, 31, 32, 33, 63, 64, 65, 393)
    ]
    for index, shape in enumerate(shapes):
        code = index % 2
        x, weight, bias, residual = operands(*shape)
        prepared = ops.prepare_linear(weight, bias, name="test")
        with ops.stream(alone=False) as running:
            added = reference.put(running, residual)
            hidden = reference.put(running, x)
            expected = running.download(
                running.linear(hidden, prepared, activation=activations[code], residual=added)
            )
        for threads in (1, 2) if shape[1] > 32 else (1,):  # one panel is one job
            out = run(
                [*runner, str(threads)],
                *("linear", format_, *shape, code, 1),
                arrays=(x, weight, bias, residual),
            )
            assert out.tobytes() == expected.tobytes(), (shape, threads)


@pytest.mark.parametrize(
    ("format_", "op"),
    [
        ("bfloat16x6", "attention"),
        ("bfloat16x3", "attention_split"),
        ("bfloat16x1", "attention_narrow"),
        ("int8", "attention_narrow"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_gives_the_bytes_of_the_software_tiles(
    runner: list[str], make_ops: Any, reference: Any, format_: str, op: str, threads: int
) -> None:
    dtype, precision = FORMATS[format_]
    seqlens, heads, head_dim = [1, 30, 270, 7], 2, 40
    qkv = np.random.default_rng(3).standard_normal((308, 3 * heads * head_dim)).astype(np.float32)
    out = run([*runner, str(threads)], op, heads, head_dim, *seqlens, arrays=(qkv,))
    ops = make_ops(dtype, matmul_precision=precision, isa="amx-software", threads=1)
    with ops.stream(alone=False) as running:
        batch = running.upload(pack([np.zeros(n, np.int32) for n in seqlens]))
        scale = float(np.float32(1) / np.float32(head_dim))
        hidden = reference.put(running, qkv)
        expected = running.download(
            running.attention(
                hidden, batch, num_heads=heads, head_dim=head_dim, softmax_scale=scale
            )
        )
    assert out.tobytes() == expected.tobytes()


def test_the_path_ran_on_tiles(runner: list[str]) -> None:
    arrays = operands(33, 20, 65)[:3]
    done = subprocess.run(
        [*runner, *("1", "linear", "bfloat16x1", "33", "20", "65", "0", "0")],
        input=b"".join(array.tobytes() for array in arrays),
        capture_output=True,
        check=True,
    )
    # Configured and released once. Two blocks of 32 rows: each clears and stores four tiles, and
    # takes four loads and four products for each of three times 32 inputs.
    count = 2 + 2 * (4 + 4 + 3 * (4 + 4))
    assert done.stderr.decode().split() == ["trapped", str(0 if HAS_AMX else count)]
