"""The extension with the CPU kernels; everything else about the package is in pyproject.toml.

One C++ file per instruction-set path, each with its own compiler flags; which path runs is decided
at run time. The extension is optional: where no compiler is found, or it fails, the package
installs without it and runs on the NumPy ops.
"""

from __future__ import annotations

import os
import platform
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
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
COMMON = [
    *("native", "native_program", "operators", "program", "weight_memory", "pool", "team"),
    *("dispatch", "cpu_features", "path_portable"),
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# GCC 12 takes the deliberately undefined operands of its own AVX-512 headers for mistakes.
AVX512 = [
    *AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),
]
PATHS_X86_64 = {
    "path_avx2": AVX2,
    "path_avx2_vnni": [*AVX2, "-mavxvnni"],
    "path_avx512": AVX512,
    "path_avx512_vnni": [*AVX512, "-mavx512vnni"],
    "path_amx": [*AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
    "path_avx2_vnni_software": AVX2,
    "path_avx512_software": AVX2,
    "path_amx_software": AVX2,
    "path_neon_bf16_software": AVX2,
}


PATHS_AARCH64 = {
    "path_neon": [],
    "path_neon_dotprod": ["-march=armv8.2-a+dotprod"],
    "path_neon_i8mm": ["-march=armv8.2-a+dotprod+i8mm"],
    "path_neon_bf16": ["-march=armv8.2-a+dotprod+i8mm+bf16"],
}
PATHS: dict[str, dict[str, list[str]]] = {
    "x86_64": PATHS_X86_64,
    "amd64": PATHS_X86_64,
    "aarch64": PATHS_AARCH64,
    "arm64": PATHS_AARCH64,
}
paths = PATHS.get(platform.machine().lower(), {})


class BuildPaths(build_ext):
    """Gives each source its own flags, and all cores to the compiler; setuptools does neither."""

    def build_extension(self, ext: Extension) -> None:
        """Wrap the compiler's hooks (unix compilers) for the time of the build."""
        compile_one, compile_list = self.compiler._compile, self.compiler.compile

        def compile_with_flags(
            obj: str, src: str, suffix: str, cc_args: list[str], extra: list[str], pp_opts: Any
        ) -> None:
            flags = extra + paths.get(Path(src).stem, [])
            compile_one(obj, src, suffix, cc_args, flags, pp_opts)

        def compile_at_once(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                lists = list(pool.map(lambda source: compile_list([source], **options), sources))
            return [name for names in lists for name in names]

        self.compiler._compile, self.compiler.compile = compile_with_flags, compile_at_once
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile, self.compiler.compile = compile_one, compile_list


setup(
    cmdclass={"build_ext": BuildPaths},
    ext_modules=[
        Extension(
            "minibert.kernels.cpu._native",
            sources=[str(SOURCE / f"{name}.cpp") for name in [*COMMON, *paths]],
            depends=sorted(str(header) for header in SOURCE.glob("*.h")),
            extra_compile_args=COMMON_FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
)
