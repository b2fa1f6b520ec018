"""Builds and runs runner.cpp: the kernels without Python, for other processors and sanitizers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from minibert.kernels import cpu

SOURCE = Path(cpu.__file__).parent
COMMON = (
    *("operators", "background", "weight_memory", "pool", "team", "dispatch", "cpu_features"),
    "path_portable",
)
FLAGS = ("-std=c++17", "-ffp-contract=off", f"-I{SOURCE}", "-Wall", "-Wextra", "-Werror")


def build(
    folder: Path,
    compiler: str,
    paths: Mapping[str, Sequence[str]],
    *,
    flags: Sequence[str],
    link: Sequence[str],
    others: Mapping[Path, Sequence[str]] | None = None,
) -> Path:
    """Compile the common sources, `paths` (file stem -> its flags) and `others`; link them."""
    sources: dict[Path, Sequence[str]] = {SOURCE / f"{name}.cpp": flags for name in COMMON}
    sources[Path(__file__).with_name("runner.cpp")] = flags
    sources.update({SOURCE / f"{name}.cpp": own for name, own in paths.items()})
    sources.update(others or {})

    def compile_one(item: tuple[Path, Sequence[str]]) -> Path:
        target = folder / f"{item[0].stem}.o"
        command = [compiler, *FLAGS, *item[1], "-c", str(item[0]), "-o", str(target)]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources.items()))
    program = folder / "runner"
    subprocess.run([compiler, *link, "-pthread", *objects, "-o", program], check=True)
    return program


def run(command: Sequence[str], *arguments: Any, arrays: Sequence[Any] = ()) -> Any:
    """Run the program; operands go in and the result comes out as float32."""
    done = subprocess.run(
        [*command, *map(str, arguments)],
        input=b"".join(np.ascontiguousarray(a, np.float32).tobytes() for a in arrays),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return np.frombuffer(done.stdout, np.float32)
