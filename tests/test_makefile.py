"""What the Makefile's targets would run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="not installed: make")


def would_run(*arguments: str) -> str:
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_tests_are_installed_once_with_the_paths_in_software(tmp_path: Path) -> None:
    """In an empty folder, with a program in Python's place that writes down how it was called."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$MINIBERT_SOFTWARE_PATHS $*" >> calls\n')
    python.chmod(0o755)
    for stamp in ("test", "core"):
        command = ["make", "-f", ROOT / "Makefile", f".venv/{stamp}.stamp"]
        subprocess.run([*command, f"PY={python}", f"PYTHON={python}"], cwd=tmp_path, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    installations = [call for call in calls if "pip install" in call]
    assert len(installations) == 1
    assert installations[0].startswith("1 ") and installations[0].endswith(".[test]")


def test_clean_removes_the_extension() -> None:
    assert "kernels/cpu/_native*.so" in would_run("clean")


@pytest.mark.parametrize(("arguments", "extra"), [((), "cuda13"), (("CUDA=12",), "cuda12")])
def test_one_cupy_is_installed_for_the_cuda_of_the_driver(
    arguments: tuple[str, ...], extra: str
) -> None:
    stamp = f".venv/{extra}.stamp"
    printed = would_run("--always-make", stamp, *arguments)
    assert f"--editable '.[{extra}]'" in printed
    assert printed.index("pip uninstall") < printed.index(f".[{extra}]")
