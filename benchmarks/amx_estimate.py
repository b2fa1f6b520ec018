"""What the AMX path may reach, estimated on a processor with AVX-512 BF16 and VNNI but without AMX.

    python -m benchmarks.amx_estimate build/models/all-MiniLM-L6-v2

Builds the extension in a copy of the tree, where the tile registers are those of `tiles_timed.h`:
everything around the products is real, the products themselves only take their time. **An estimate,
not a measurement of AMX, and no check of results**, which tests/kernels/cpu/test_amx_trapped.py is.
Of use to see what the path spends its time on, and whether a change gains.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.operators import SHAPES, measure
from minibert.loading import load_model
from minibert.ops.cpu import CpuOps

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    *("minibert", "kernels", "weights", "benchmarks"),
    *("setup.py", "pyproject.toml", "README.md", "LICENSE"),
)
VARIANTS = {
    "avx512-vnni, float32": ("float32", "highest", "avx512-vnni"),
    "avx512-vnni, int8": ("int8", "highest", "avx512-vnni"),
    "amx, float32 highest": ("float32", "highest", "amx"),
    "amx, float32 high": ("float32", "high", "amx"),
    "amx, bfloat16": ("bfloat16", "highest", "amx"),
    "amx, int8": ("int8", "highest", "amx"),
}


def build(copy: Path) -> None:
    """The extension in a copy of the tree, with tiles that only take time."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    kernels = copy / "kernels" / "cpu"
    shutil.copy(copy / "benchmarks" / "tiles_timed.h", kernels / "tiles_amx.h")
    features = kernels / "cpu_features.cpp"
    # Whatever else the file declares stays in use.
    supported = "f.amx = f.avx512_vnni && bit(seven_one.eax, 5) && (kAmx || ask_for_tiles());"
    text, count = re.subn(r"f\.amx = [^;]+;", supported, features.read_text())
    if count != 1:
        raise SystemExit("cpu_features.cpp no longer says once which processors have AMX")
    features.write_text(text)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, check=True)


def table(model: Path, passes: int) -> None:
    """Measure and print; runs in the copy."""
    loaded = load_model(model)
    makers = {
        name: partial(CpuOps, dtype, threads=1, matmul_precision=precision, isa=isa)
        for name, (dtype, precision, isa) in VARIANTS.items()
    }
    kinds = ("linear", "attention", "layer_norm")
    print("| texts | path and format | ms | tokens/s | linear | attention | layer_norm |")
    print("|---|---|---|---|---|---|---|")
    for num_seqs, seqlen in SHAPES:
        found = measure(loaded, num_seqs, seqlen, passes, makers)
        for name, seconds in found.items():
            total = sum(seconds.values())
            parts = " | ".join(f"{1e3 * seconds[kind]:.2f}" for kind in kinds)
            speed = f"{1e3 * total:.2f} | {num_seqs * seqlen / total:,.0f}"
            print(f"| {num_seqs} x {seqlen} | {name} | {speed} | {parts} |", flush=True)


def main() -> None:
    """Build the copy and measure in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--in-copy", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_copy:
        return table(arguments.model, arguments.passes)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        build(copy)
        module = (sys.executable, "-m", "benchmarks.amx_estimate", "--in-copy")
        subprocess.run(
            [*module, str(arguments.model.resolve()), "--passes", str(arguments.passes)],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            check=True,
        )


if __name__ == "__main__":
    main()
