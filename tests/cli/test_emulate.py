"""`minibert emulate` on the example with a planted race."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

EXAMPLE = Path(__file__).parents[2] / "examples" / "find_a_race.cu"
ARGUMENTS = ("float32[4]", "float32[1000]=random", "1000")


def test_a_race_is_reported_with_its_line(run: Callable[..., Result]) -> None:
    result = run("emulate", EXAMPLE, *ARGUMENTS, "--grid", 4, "--block", 256)
    assert result.exit_code == 1
    assert "race in block_sum at find_a_race.cu:13" in result.output
    assert "sums[threadIdx.x] += sums[threadIdx.x + half];" in result.output


def test_the_repaired_kernel_is_clean_and_counted(run: Callable[..., Result]) -> None:
    result = run("emulate", EXAMPLE, *ARGUMENTS, "--grid", 4, "--block", 256, "-D", "REPAIRED")
    assert result.exit_code == 0
    assert "no fault found" in result.output
    assert "global load: 125 sectors, 125 ideal" in result.output


def test_bad_arguments_are_named(run: Callable[..., Result], tmp_path: Path) -> None:
    wrong = run("emulate", EXAMPLE, "float99[4]", "--block", 64)
    assert wrong.exit_code == 2
    assert "float99" in wrong.output
    assert "one to three numbers" in run("emulate", EXAMPLE, "--grid", "0").output
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void f() { int x = ; }\n")
    result = run("emulate", broken)
    assert result.exit_code == 2
    assert "minibert: error: broken.cu does not compile" in result.output
    assert "Traceback" not in result.output
    lines = result.stderr.splitlines()
    assert any(line.startswith("broken.cu(1): error:") for line in lines)  # a line each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arch", "foo"), "arch must be one of sm_70, sm_72"),
        (("--arch", "sm_1"), "got 'sm_1'"),
        (("--block", "2048"), "block.x of block_sum must be from 1 to 1024 on sm_80, got 2048"),
        (("--shared", "99999999"), "shared memory of a block of block_sum must be at most"),
        (("--kernel", "none"), "kernel must be one that find_a_race.cu has, got 'none'"),
        (("1",), "block_sum takes 3 arguments, got 4"),
    ],
)
def test_what_has_to_change_in_the_call_is_a_line_and_exit_code_2(
    run: Callable[..., Result], options: tuple[str, ...], message: str
) -> None:
    result = run("emulate", EXAMPLE, *ARGUMENTS, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
