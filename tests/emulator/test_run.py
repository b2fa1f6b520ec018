"""The user's side: a file, arguments as text, a report; and the example."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.kernels.emulator.run import emulate_file, parse_argument

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = """
#include "scale.cuh"
template <int kFactor>
__global__ void scale(float* out, const float* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = apply(in[i], kFactor);
}
"""
HEADER = "__device__ inline float apply(float x, int factor) { return x * factor; }\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "scale.cuh").write_text(HEADER)
    path = tmp_path / "scale.cu"
    path.write_text(SOURCE)
    return path


def test_a_template_instance_of_a_file_with_a_header(file: Path) -> None:
    args = ("float32[40]", "float32[40]=range", "int32:40")
    done = emulate_file(file, "scale<3>", 2, 32, args)
    assert done.fault is None and done.counters is not None
    np.testing.assert_array_equal(done.args[0], 3 * np.arange(40))
    assert "no fault found" in done.report() and "global load: 5 sectors" in done.report()


def test_a_fault_is_shown_with_its_line(file: Path) -> None:
    args = ("float32[40]", "float32[40]=range", "int32:41")
    done = emulate_file(file, "scale<3>", 2, 32, args)
    assert done.fault is not None and done.fault.kind == "out of bounds"
    assert ">     6 |   if (i < n) out[i]" in done.report()


def test_the_only_kernel_need_not_be_named(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "one.cu"
    path.write_text('extern "C" __global__ void one(int* out) { out[threadIdx.x] = 1; }')
    assert emulate_file(path, None, 1, 4, ("int32[4]",)).args[0].tolist() == [1, 1, 1, 1]
    with pytest.raises(InputError, match=r"kernel must be named: scale\.cu has no kernel that"):
        emulate_file(file, None, 1, 4, ())
    with pytest.raises(InputError, match=r"one that one\.cu has, got 'two'; it has \['one'\]"):
        emulate_file(path, "two", 1, 4, ("int32[4]",))
    with pytest.raises(InputError, match="path must be a CUDA file"):
        emulate_file(tmp_path / "none.cu", None, 1, 4, ())
    path.write_bytes(b"// caf\xe9\n")
    with pytest.raises(InputError, match=r"path must be UTF-8 text, got '.*one\.cu'.*0xe9"):
        emulate_file(path, None, 1, 4, ())


def test_arguments_as_text(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def parse(text: str) -> object:
        return parse_argument(text, generator)

    assert parse("null") is None
    for text, value in (("int32:0x10", 16), ("64", 64), ("uint64:7", 7)):
        assert parse(text) == value
    assert type(parse("64")) is np.int32
    assert parse("float32:1e-3") == np.float32(1e-3)
    assert np.asarray(parse("float32[2,3]=0.5")).tolist() == [[0.5] * 3] * 2
    assert np.asarray(parse("int8[4]=range")).tolist() == [0, 1, 2, 3]
    assert np.asarray(parse("float16[4]=ones")).dtype == np.float16
    assert np.asarray(parse("bfloat16[4]=zeros")).dtype == np.uint16
    assert np.abs(np.asarray(parse("float32[1000]=random"))).max() < 6
    assert len(np.unique(np.asarray(parse("int8[1000]=random")))) > 200
    np.save(tmp_path / "data.npy", np.arange(3.0))
    assert np.asarray(parse(str(tmp_path / "data.npy"))).tolist() == [0, 1, 2]
    assert parse("bool:1") == np.True_
    assert len(np.unique(np.asarray(parse("bool[99]=random")))) == 2
    for text in (
        "float32[4]=many",
        "complexity[4]",
        "int32:x",
        "1.5",
        "gone.npy",
        "int8:1000",
        "object[4]",
        "str:x",
        "bool:2",
        "float32[4",
        "float32[-4]",
        "",
        ".",
    ):
        with pytest.raises(InputError, match="argument must"):
            parse(text)
    for content in (b"", b"\x93NUMPY", b"text"):
        (tmp_path / "data.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"argument must be a sound \.npy file"):
            parse(str(tmp_path / "data.npy"))
    np.savez(tmp_path / "several", np.arange(3))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(InputError, match="of one array"):
        parse(str(tmp_path / "several.npy"))


def test_the_example_finds_its_race(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "find_a_race.py"), run_name="__main__")
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("race in block_sum at find_a_race.cu:13")
    assert second.startswith("block_sum: no fault found")
