"""A compiler that is too old for some paths builds the others, and `minibert doctor` says so."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
# What GCC 7 does with these flags; and no optimisation: this builds everything.
OLD_COMPILER = """#!{python}
import os, sys
refused = ("-mavxvnni", "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16")
for flag in sys.argv[1:]:
    if flag in refused:
        print("c++: error: unrecognized command line option '" + flag + "'", file=sys.stderr)
        sys.exit(1)
arguments = ["-O0" if a in ("-O1", "-O2", "-O3") else a for a in sys.argv[1:]]
os.execv({compiler!r}, [{compiler!r}, *arguments])
"""
LEFT_OUT = {"avx2-vnni", "avx512-vnni", "amx"}
# A layer on every path that is there and runs here, against NumPy in float64.
PROGRAM = """
import json
import numpy as np
from minibert.batch import pack
from minibert.errors import DeviceError
from minibert.kernels.cpu import loader
from minibert.ops.cpu import CpuOps

table, weight = np.random.default_rng(0).standard_normal((2, 20, 20)).astype(np.float32)
errors = {}
for path in loader.all_paths():
    if path.supported:
        ops = CpuOps(isa=path.name, threads=1)
        prepared = ops.prepare_linear(weight, None, name="x")
        embedding = ops.prepare_embedding(table)
        with ops.stream(alone=False) as running:
            batch = running.upload(pack([np.arange(20, dtype=np.int32)]))
            hidden = running.embed(batch, [embedding, None, None], None)
            out = running.download(running.linear(hidden, prepared))
        errors[path.name] = float(np.abs(out - table.astype(float) @ weight.T.astype(float)).max())
try:
    loader.choose_path("amx")
except DeviceError as error:
    refusal = str(error)
print(json.dumps({
    "paths": [path.name for path in loader.all_paths()],
    "errors": errors,
    "left_out": loader.left_out(),
    "refusal": refusal,
}))
"""

compiler = shutil.which("g++")
pytestmark = [
    pytest.mark.skipif(compiler is None, reason="not installed: g++"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="its paths are those of x86-64"),
    pytest.mark.skipif(not (CHECKOUT / "setup.py").is_file(), reason="not a checkout"),
]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "", "MINIBERT_SOFTWARE_PATHS": "", **more}


def copy_of_checkout(folder: Path) -> Path:
    folder.mkdir()
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("minibert", "kernels", "weights"):
        shutil.copytree(CHECKOUT / name, folder / name, symlinks=True, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the checkout, built in place by the old compiler, and what the build printed."""
    folder = copy_of_checkout(tmp_path_factory.mktemp("old") / "checkout")
    script = folder.parent / "c++"
    script.write_text(OLD_COMPILER.format(python=sys.executable, compiler=compiler))
    script.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env=environment(CC=str(script), CXX=str(script)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def run(folder: Path, *arguments: str) -> Any:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "build",
    [
        ("setup.py", "build_ext", "--inplace"),
        ("-c", "from setuptools import build_meta; build_meta.build_editable('.')"),
    ],
    ids=["in place", "editable"],
)
def test_a_build_that_fails_leaves_no_extension_of_an_earlier_one(
    tmp_path: Path, build: tuple[str, ...]
) -> None:
    folder = copy_of_checkout(tmp_path / "checkout")
    earlier = folder / "kernels" / "cpu" / "_native.abi3.so"
    earlier.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, *build],
        cwd=folder,
        env=environment(CC="false", CXX="false"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not earlier.exists()


def test_only_the_paths_that_it_refuses_are_left_out(built: tuple[Path, str]) -> None:
    folder, printed = built
    report = run(folder, "-c", PROGRAM)
    assert set(report["left_out"]) == LEFT_OUT
    assert LEFT_OUT.isdisjoint(report["paths"])
    assert set(report["paths"]) == {"avx512", "avx2", "portable"}  # none in software: for tests
    assert report["left_out"]["avx2-vnni"] == ("c++: unrecognized command line option '-mavxvnni'")
    for path in LEFT_OUT:
        assert f"path {path} is left out" in printed
    assert "portable" in report["errors"]
    # Sums of 20 products of standard normal values: far above float32's roundings, far below 1.
    assert max(report["errors"].values()) < 1e-4


def test_a_path_left_out_is_refused_with_the_reason(built: tuple[Path, str]) -> None:
    refusal = run(built[0], "-c", PROGRAM)["refusal"]
    assert "'amx', which is not in this build (c++: unrecognized" in refusal


def test_doctor_names_the_paths_left_out(built: tuple[Path, str]) -> None:
    report = run(built[0], "-m", "minibert", "doctor", "--json")
    lines = [line for line in report["findings"] if line["name"] == "left out"]
    assert {name for line in lines for name in line["value"].split(", ")} == LEFT_OUT
    assert any("'-mavxvnni'" in line["advice"] for line in lines)
    assert all(line["section"] == "CPU kernels" for line in lines)
