"""The extension with the CPU kernels; everything else about the package is in pyproject.toml.

One C++ file per instruction-set path, each with its own compiler flags; which path runs is decided
at run time. A path that the compiler is too old for is left out, and so are the paths in software,
which are for tests, unless MINIBERT_SOFTWARE_PATHS is set (`make test` does). The extension is
optional: where no compiler is found, or it fails, the package installs without it and runs on the
NumPy ops.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path("kernels/cpu")
# -ffp-contract=off: a product is fused with a sum where the source says fma, and nowhere else;
# otherwise tiles of different heights could round differently.
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fno-fast-math",  # whatever CFLAGS says: NaN is looked for, and sums keep their order
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
COMMON = [
    *("native", "native_program", "native_background", "operators", "program", "background"),
    *("weight_memory", "pool", "team", "dispatch", "cpu_features", "path_portable"),
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# GCC 12 takes the deliberately undefined operands of its own AVX-512 headers for mistakes.
AVX512 = [
    *AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),
]
SOFTWARE = [*AVX2, "-O2"]  # their loops at -O3 were half of the build's time
WITH_SOFTWARE = os.environ.get("MINIBERT_SOFTWARE_PATHS", "") not in ("", "0")
# Path: its flags, and an instruction that both compiler and assembler must know.
PATHS_X86_64 = {
    "avx2": (AVX2, "vfmadd231ps %ymm0, %ymm1, %ymm2"),
    "avx2_vnni": ([*AVX2, "-mavxvnni"], "{vex} vpdpbusd %ymm0, %ymm1, %ymm2"),
    "avx512": (AVX512, "vpmaddubsw %zmm0, %zmm1, %zmm2"),
    "avx512_vnni": ([*AVX512, "-mavx512vnni"], "vpdpbusd %zmm0, %zmm1, %zmm2"),
    "amx": (
        [*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
        "tdpbf16ps %tmm0, %tmm1, %tmm2",
    ),
    "avx2_vnni_software": (SOFTWARE, "vfmadd231ps %ymm0, %ymm1, %ymm2"),
    "avx512_vnni_software": (SOFTWARE, "vfmadd231ps %ymm0, %ymm1, %ymm2"),
    "amx_software": (SOFTWARE, "vfmadd231ps %ymm0, %ymm1, %ymm2"),
    "neon_bf16_software": (SOFTWARE, "vfmadd231ps %ymm0, %ymm1, %ymm2"),
}
PATHS_AARCH64 = {
    "neon": ([], "fmla v0.4s, v1.4s, v2.4s"),
    "neon_dotprod": (["-march=armv8.2-a+dotprod"], "sdot v0.4s, v1.16b, v2.16b"),
    "neon_i8mm": (["-march=armv8.2-a+dotprod+i8mm"], "usmmla v0.4s, v1.16b, v2.16b"),
    "neon_bf16": (["-march=armv8.2-a+dotprod+i8mm+bf16"], "bfmmla v0.4s, v1.8h, v2.8h"),
}
PATHS: dict[str, dict[str, tuple[list[str], str]]] = {
    "x86_64": PATHS_X86_64,
    "amd64": PATHS_X86_64,
    "aarch64": PATHS_AARCH64,
    "arm64": PATHS_AARCH64,
}
paths = PATHS.get(platform.machine().lower(), {})


def refusal(command: list[str], flags: list[str], instruction: str) -> str:
    """Why a compiler cannot build a path, in its own words; empty where it can."""
    done = subprocess.run(
        [*command, *flags, "-x", "c++", "-c", "-", "-o", os.devnull],
        input=f'__asm__("{instruction}");',
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode == 0:
        return ""
    said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    last = re.split(r"error:\s*", said[0], flags=re.IGNORECASE)[-1] if said else "it fails"
    return f"{Path(command[0]).name}: {last.strip()[:120]}"


def stand_in(left_out: dict[str, str], unwanted: Sequence[str] = ()) -> str:
    """C++ that defines what paths that are not built would have: nothing; and says why of some."""
    empty = [
        f"extern const Kernels* const {path}_path = nullptr;" for path in (*left_out, *unwanted)
    ]
    # JSON of plain ASCII: C++ reads its escapes the same way.
    rows = [
        (json.dumps(path.replace("_", "-")), json.dumps(why.encode("ascii", "replace").decode()))
        for path, why in left_out.items()
    ]
    reasons = [f"    {{{name}, {why}}}," for name, why in rows]
    lines = [*empty, "const LeftOut left_out[] = {", *reasons, "    {nullptr, nullptr},", "};"]
    return "\n".join(['#include "dispatch.h"', "", "namespace minibert {", *lines, "}", ""])


class BuildPaths(build_ext):
    """Gives each source its own flags, and all cores to the compiler; setuptools does neither.

    Paths that the compiler cannot build are left out; `minibert doctor` says which, and why.
    """

    def run(self) -> None:
        """Remove what an earlier build left in the checkout: this one may fail, as it is optional.

        Else the new Python code would run on the old kernels, without a word.
        """
        if self.inplace or self.editable_mode:
            for earlier in SOURCE.glob("_native*.so"):
                earlier.unlink()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Wrap the compiler's hooks (unix compilers) for the time of the build."""
        unwanted = [] if WITH_SOFTWARE else [path for path in paths if path.endswith("_software")]
        left_out = self.paths_left_out([path for path in paths if path not in unwanted])
        for path, why in left_out.items():
            self.warn(f"path {path.replace('_', '-')} is left out: {why}")
        generated = Path(self.build_temp, "left_out.cpp")
        text = stand_in(left_out, unwanted)
        # Written only where it changes: a newer source would compile everything again.
        if not generated.is_file() or generated.read_text() != text:
            generated.parent.mkdir(parents=True, exist_ok=True)
            generated.write_text(text)
        dropped = {str(SOURCE / f"path_{path}.cpp") for path in (*left_out, *unwanted)}
        ext.sources = [name for name in ext.sources if name not in dropped] + [str(generated)]
        compile_one, compile_list = self.compiler._compile, self.compiler.compile

        def compile_with_flags(
            obj: str, src: str, suffix: str, cc_args: list[str], extra: list[str], pp_opts: Any
        ) -> None:
            flags, _ = paths.get(Path(src).stem.removeprefix("path_"), ([], ""))
            compile_one(obj, src, suffix, cc_args, extra + flags, pp_opts)

        def compile_at_once(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                lists = list(pool.map(lambda source: compile_list([source], **options), sources))
            return [name for names in lists for name in names]

        self.compiler._compile, self.compiler.compile = compile_with_flags, compile_at_once
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile, self.compiler.compile = compile_one, compile_list

    def paths_left_out(self, wanted: list[str]) -> dict[str, str]:
        """Those that this compiler cannot build, and why: {path: reason}."""
        command = getattr(self.compiler, "compiler_so_cxx", None)
        if not command:  # not a unix compiler: it fails on its own terms
            return {}

        @functools.cache
        def ask(flags: tuple[str, ...], instruction: str) -> str:
            return refusal(command, list(flags), instruction)

        answers = {path: ask(tuple(paths[path][0]), paths[path][1]) for path in wanted}
        return {path: why for path, why in answers.items() if why}


setup(
    cmdclass={"build_ext": BuildPaths},
    ext_modules=[
        Extension(
            "minibert.kernels.cpu._native",
            sources=[
                str(SOURCE / f"{name}.cpp")
                for name in [*COMMON, *(f"path_{path}" for path in paths)]
            ],
            depends=sorted(str(header) for header in SOURCE.glob("*.h")),
            include_dirs=[str(SOURCE)],
            extra_compile_args=COMMON_FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
)
