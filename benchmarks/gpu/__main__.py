"""`make gpu`: checks and measures everything that needs a GPU, in less than ten minutes.

```
python -m benchmarks.gpu                     on the first GPU
python -m benchmarks.gpu --device emulator   the same program without a GPU, at tiny sizes
```

Correctness first: inline PTX against the ISA, the kernel tests, whole models against float64 and
against the emulator. Then the measurements, each beside its floor and its rivals. Results go to
`$OUT`, or to `benchmarks/results`, as JSON and as a table; the exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import checks, costs, peaks, timings
from benchmarks.gpu.clock import CupyClock, Rounds, WallClock
from benchmarks.gpu.report import Report
from benchmarks.gpu.workloads import BASE, LARGE, MINILM, TINY, ragged
from minibert.kernels.cuda import nvrtc
from minibert.kernels.cuda.device import CupyDevice, Device
from minibert.kernels.cuda.emulated import EmulatedDevice

ROOT = Path(__file__).parents[2]
KERNEL_TESTS = (
    "test_norms.py",
    "test_gemm.py",
    "test_gemm_sparse.py",
    "test_attention.py",
    "test_pool.py",
)


def main(arguments: list[str] | None = None) -> int:
    """Run all stages; 0 if every check held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or emulator")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="sizes of the emulator on a GPU too")
    parser.add_argument("--time-limit", type=float, default=560.0, help="seconds for all of it")
    chosen = parser.parse_args(arguments)
    out = chosen.out or Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    begin = time.monotonic()
    kind, _, number = chosen.device.partition(":")
    emulated = kind == "emulator"
    device: Device = EmulatedDevice(80) if emulated else CupyDevice(int(number or 0))
    report = Report(_environment(device, kind))
    stages = _stages(report, device, chosen.device, emulated=emulated, tiny=emulated or chosen.tiny)
    for name, stage in stages.items():
        left = chosen.time_limit - (time.monotonic() - begin)
        if left < 15:
            report.skipped[name] = "out of time"
            continue
        print(f"{name} ({left:.0f} s left)", flush=True)
        started = time.monotonic()
        try:
            stage(left)
        except Exception as error:
            traceback.print_exc()
            report.check(name, "runs to its end", False, f"{type(error).__name__}: {error}")
        report.seconds[name] = time.monotonic() - started
    paths = report.write(out)
    print(report.table())
    print("written:", *paths)
    return 0 if report.ok else 1


def _stages(
    report: Report, device: Device, device_name: str, *, emulated: bool, tiny: bool
) -> dict[str, Callable[[float], None]]:
    """Stage -> what it does with the seconds that are left; sizes depend on the device."""
    bench = _bench(report, device, emulated, tiny)
    emulator = EmulatedDevice(_emulated_capability(device), checks=False)
    dtypes = ["float32", "float16", "bfloat16", "int8"]
    if device.target.compute_capability < 80:
        dtypes.remove("bfloat16")
    models = [TINY] if tiny else [MINILM, BASE, LARGE]
    small = TINY if tiny else MINILM
    found: dict[str, Any] = {"ceilings": None}
    files = [f"tests/kernels/cuda/{name}" for name in KERNEL_TESTS]
    if tiny:
        # The test suite runs the rest of them in the emulator anyway.
        files = [files[-1] + "::test_a_row_of_zeros_is_normalised_to_zeros"]

    def parity(left: float) -> None:
        checks.parity(report, device, emulator, TINY, [9, 1, 12], dtypes)
        if not tiny:
            checks.parity(report, device, emulator, MINILM, [7, 12, 3], ["float16", "int8"])

    def ceilings(left: float) -> None:
        size, nbytes = (64, 1 << 20) if tiny else (8192, 1 << 30)
        found["ceilings"] = timings.ceilings(bench, size, nbytes)

    def units(left: float) -> None:
        sizes = peaks.Sizes(0, 4, 3) if tiny else peaks.Sizes()
        peaks.tensor_cores(bench, sizes)
        peaks.functions(bench, sizes)
        peaks.barriers(bench, sizes)
        nbytes, passes = (1 << 14, 1) if tiny else (21_000_000, 40)
        costs.l2_reads(bench, nbytes, passes)

    def linear_layers(left: float) -> None:
        for shape in models[:2]:
            tokens = (8,) if tiny else (16, 128, 2816, 16384)
            timings.linear_layers(bench, shape, tokens, found["ceilings"])

    def attentions(left: float) -> None:
        cases = [(1, 16, 2, 32)]
        if not tiny:
            cases = [(32, 128, 12, 64), (64, 512, 12, 64), (64, 512, 12, 32), (16, 512, 16, 128)]
        timings.attentions(bench, cases, found["ceilings"])

    def launches(left: float) -> None:
        timings.launches(bench, small)
        costs.host_launches(bench)
        nodes, grids = (3, (1,)) if tiny else (200, (1, 8, device.target.num_sms))
        costs.graph_nodes(bench, nodes, grids)

    def whole_models(left: float) -> None:
        cases = {"1 x 16": [16]}
        if not tiny:
            cases |= {
                "1 x 128": [128],
                "32 x 128": [128] * 32,
                "256 texts, 3 to 256 tokens": ragged(256, 64, 256),
                "64 x 512": [512] * 64,
            }
        for shape in models:
            chosen = ["float16"] if tiny else ["float16", "bfloat16", "int8"]
            chosen = [dtype for dtype in chosen if dtype in dtypes]
            timings.whole_models(bench, shape, cases, chosen, found["ceilings"])

    return {
        "conformance": lambda left: checks.conformance(report, device),
        "kernel tests": lambda left: checks.kernel_tests(
            report, device_name, files, min(left - 10, 150)
        ),
        "parity": parity,
        "ceilings": ceilings,
        "peaks": units,
        "host cost": launches,
        "linear layers": linear_layers,
        "attention": attentions,
        "whole models": whole_models,
    }


def _bench(report: Report, device: Device, emulated: bool, tiny: bool) -> timings.Bench:
    torch: Any = None
    try:
        import torch
    except ImportError:
        report.skipped["PyTorch"] = "not installed: no rivals and no floors"
    if torch is not None and not emulated and not torch.cuda.is_available():
        torch = None
        report.skipped["PyTorch"] = "sees no GPU: no rivals and no floors"
    rounds = Rounds(rounds=2, target_us=1.0, warm_ups=1) if tiny else Rounds()
    if emulated:
        return timings.Bench(report, device, WallClock(), rounds, torch, "cpu")
    import cupy

    return timings.Bench(report, device, CupyClock(cupy), rounds, torch, "cuda")


def _emulated_capability(device: Device) -> int:
    """The newest architecture not newer than the device whose instructions our kernels use."""
    return 75 if device.target.compute_capability < 80 else 80


def _environment(device: Device, kind: str) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    environment: dict[str, Any] = {
        "device": device.name,
        "compute capability": device.target.compute_capability / 10,
        "multiprocessors": device.target.num_sms,
        "NVRTC": ".".join(map(str, nvrtc.version())),
        "commit": commit or "unknown",
        "Python": platform.python_version(),
    }
    if kind == "cuda":
        import cupy

        environment["CuPy"] = cupy.__version__
        environment["driver"] = cupy.cuda.runtime.driverGetVersion()
    return environment


if __name__ == "__main__":
    sys.exit(main())
