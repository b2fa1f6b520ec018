"""What the tests of the path `amx` without AMX share: where they run, and setup.py's flags."""

from __future__ import annotations

import platform
import runpy
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from minibert.cli.machine import cpu_features
from tests.cpu_encoder import PATHS, needs_kernels

COMPILER = "g++"
SETUP = Path(__file__).parents[3] / "setup.py"
HERE = Path(__file__).parent
HAS_AMX = "amx" in PATHS
needed = [
    needs_kernels,
    pytest.mark.skipif(
        platform.system() != "Linux", reason="how signals hand over registers is Linux's here"
    ),
    pytest.mark.skipif(
        "avx512-vnni" not in PATHS or "AVX-512 BF16" not in (cpu_features() or ()),
        reason="the rest of path amx needs AVX-512 VNNI and BF16",
    ),
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"not installed: {COMPILER}"),
    pytest.mark.skipif(not SETUP.is_file(), reason="not a checkout: no setup.py"),
]


def recipe() -> dict[str, Any]:
    """What setup.py knows of flags and paths."""
    with patch("setuptools.setup"):
        known = runpy.run_path(str(SETUP))
    flags, instruction = known["PATHS_X86_64"]["amx"]
    if said := known["refusal"]([COMPILER], flags, instruction):
        pytest.skip(f"the compiler knows no AMX: {said}")
    return known
