"""The machine's ceilings, measured: multiply-adds of each kind, and reading memory.

A C file of loops is compiled with the system's compiler where there is one, and each loop runs on
all threads at once. Without a compiler, or on another processor than x86-64, the best float32
matrix product of NumPy stands in for the multiply-adds, and says so by its name.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_name("ceilings.c")

LOOPS: dict[str, tuple[str, str, int]] = {
    "fma_avx2": ("float32", "AVX2", 160),
    "fma_avx512": ("float32", "AVX-512", 384),
    "int8_avx2": ("int8", "AVX2", 768),
    "int8_avxvnni": ("int8", "AVX-VNNI", 640),
    "int8_avx512vnni": ("int8", "AVX-512 VNNI", 1536),
    "bf16_amx": ("bfloat16", "AMX", 65536),
    "int8_amx": ("int8", "AMX", 131072),
}
"""Function of ceilings.c -> number format, feature that it needs, operations of one step."""

_READ_BYTES = 128 << 20  # for each thread: more than its share of the last cache


def measure(
    features: Collection[str], *, threads: int, scratch: Path, each_s: float = 0.2
) -> dict[str, dict[str, Any]]:
    """Measure every ceiling that the processor has.

    Args:
        features: of `minibert.cli.machine.cpu_features`.
        threads: cores to load at once.
        scratch: folder for the compiled loops.
        each_s: seconds of one repetition; the best of three counts.

    Returns:
        Name -> `per_s` (operations, or bytes for "read_memory"), `dtype` and `feature`.
    """
    library = compiled(scratch)
    found: dict[str, dict[str, Any]] = {}
    for name, (dtype, feature, operations) in LOOPS.items():
        if library is None or feature not in features:
            continue
        if feature == "AMX" and library.ask_for_tiles() != 0:
            continue
        rate = _best_rate(partial(_run_loop, getattr(library, name)), threads, each_s)
        found[name] = {"per_s": rate * operations, "dtype": dtype, "feature": feature}
    if library is None:
        found["gemm_numpy"] = {"per_s": _numpy_gemm(each_s), "dtype": "float32", "feature": "NumPy"}
    elif "AVX2" in features:
        buffers = [np.ones(_READ_BYTES, np.uint8) for _ in range(threads)]
        addresses = [buffer.ctypes.data for buffer in buffers]

        def read(thread: int, count: int) -> None:
            for _ in range(count):
                library.read_avx2(addresses[thread], _READ_BYTES)

        rate = _best_rate(read, threads, each_s)
        found["read_memory"] = {"per_s": rate * _READ_BYTES, "dtype": None, "feature": "AVX2"}
    return found


def highest(
    one: Mapping[str, dict[str, Any]], other: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The higher rate of each ceiling of two measurements, before a run and after it.

    A machine that was slow while its ceilings were measured would have engines that pass them.
    """
    return {
        name: max(found, other.get(name, found), key=lambda entry: entry["per_s"])
        for name, found in one.items()
    }


def ceiling(found: Mapping[str, Mapping[str, Any]], dtype: str) -> tuple[str, float] | None:
    """The highest rate for a number format, with its name.

    bfloat16 without matrix units is computed in float32, and has that ceiling.
    """
    rates = [(str(n), float(c["per_s"])) for n, c in found.items() if c["dtype"] == dtype]
    if not rates and dtype == "bfloat16":
        return ceiling(found, "float32")
    return max(rates, key=lambda pair: pair[1], default=None)


class Ceilings:
    """Asks again and again, for a moment each time, how fast the machine now is at a number format.

    On a shared machine the highest rate is that of a quiet moment, which an engine that runs for
    seconds does not have.
    """

    def __init__(
        self,
        found: Mapping[str, Mapping[str, Any]],
        *,
        threads: int,
        scratch: Path,
        moment_s: float = 0.1,
    ) -> None:
        """Ask for the ceilings that `measure` found, by the same loops.

        Args:
            found: of `measure`.
            threads: cores to load at once.
            scratch: folder of the compiled loops.
            moment_s: seconds of a sample.
        """
        self._found = found
        self._threads = threads
        self._moment_s = moment_s
        self._library = compiled(scratch)

    def now(self, dtype: str) -> float | None:
        """Operations a second of all threads; None where there is no loop for the format."""
        top = ceiling(self._found, dtype)
        if self._library is None or top is None:
            return None
        name, highest_rate = top
        operations = LOOPS[name][2]
        loop = partial(_run_loop, getattr(self._library, name))
        count = max(1, round(self._moment_s * highest_rate / operations / self._threads))
        return self._threads * count * operations / _timed(loop, self._threads, count)


def operations_per_text(seqlen: int, *, hidden: int, layers: int, intermediate: int) -> float:
    """Operations of the matrix products of one text; a multiply-add counts 2.

    Args:
        seqlen: tokens of the text.
        hidden: hidden_size.
        layers: num_hidden_layers.
        intermediate: intermediate_size.
    """
    weights = 2 * (4 * hidden * hidden + 2 * hidden * intermediate)
    return float(layers * (seqlen * weights + 4 * hidden * seqlen * seqlen))


def compiled(scratch: Path) -> ctypes.CDLL | None:
    """ceilings.c as a library, or None without a compiler or on another processor."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / "ceilings.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return None
    library = ctypes.CDLL(str(target))
    for name in LOOPS:
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_int64], ctypes.c_double
    library.read_avx2.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.read_avx2.restype = ctypes.c_double
    return library


def _run_loop(loop: Callable[[int], float], _thread: int, count: int) -> None:
    loop(count)


def _best_rate(run: Callable[[int, int], object], threads: int, each_s: float) -> float:
    """Steps a second of all threads together: best of three, after finding a count by doubling."""
    count = 1
    while (seconds := _timed(run, threads, count)) < each_s / 4:
        count *= 2 if seconds > each_s / 64 else 8
    count = max(1, round(count * each_s / seconds))
    return max(threads * count / _timed(run, threads, count) for _ in range(3))


def _timed(run: Callable[[int, int], object], threads: int, count: int) -> float:
    """Seconds until every thread has run `count` steps; all start together."""
    barrier = threading.Barrier(threads + 1)

    def work(thread: int) -> None:
        barrier.wait()
        run(thread, count)
        barrier.wait()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return seconds


def _numpy_gemm(each_s: float) -> float:
    """Operations a second of NumPy's best float32 product of squares."""
    size = 2048
    a = np.ones((size, size), np.float32)
    best = 0.0
    end = time.perf_counter() + 5 * each_s
    while time.perf_counter() < end or not best:
        begin = time.perf_counter()
        a @ a
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best
