"""What must hold on a device before anything is timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.report import Report
from benchmarks.gpu.workloads import Shape, config_of, random_batch, random_weights
from minibert import model
from minibert.batch import Batch, pack
from minibert.kernels.cuda.conformance import check_conformance
from minibert.kernels.cuda.device import Device
from minibert.ops.cuda import CudaOps
from minibert.ops.reference import ReferenceOps

ROOT = Path(__file__).parents[2]


def conformance(report: Report, device: Device) -> None:
    """The inline PTX means what the ISA says: a wrong layout shows here, in seconds."""
    for finding in check_conformance(device):
        detail = f"error {finding.error:.3g}, allowed {finding.allowed:.3g}"
        report.check("conformance", finding.name, finding.ok, detail)


def kernel_tests(report: Report, device_name: str, files: Sequence[str], timeout_s: float) -> None:
    """The kernel tests of the test suite, on this device."""
    environment = {**os.environ, "MINIBERT_TEST_DEVICE": device_name}
    command = [sys.executable, "-m", "pytest", "-q", "-Wdefault", "-p", "no:cacheprovider", *files]
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        report.check("kernel tests", "pytest", False, f"not done after {timeout_s:.0f} s")
        return
    tail = (ran.stdout.strip().splitlines() or ["no output"])[-1]
    for line in re.findall(r"^FAILED .*", ran.stdout, re.MULTILINE)[:40]:
        report.check("kernel tests", line[7:127], False)
    report.check("kernel tests", " ".join(files), ran.returncode == 0, tail.strip("= "))


def forward(ops: Any, shape: Shape, batch: Batch, *, graphs: bool = False) -> NDArray[Any]:
    """Normalised mean vectors of a batch by a model of random weights."""
    config = config_of(shape)
    parameters = model.prepare(ops, random_weights(shape), config)

    def pooled(stream: Any, uploaded: Any) -> tuple[Any, ...]:
        hidden = model.encode(stream, uploaded, parameters, config)
        return (stream.normalize(stream.pool(hidden, uploaded, "mean")),)

    with ops.stream(alone=True) as stream:
        if graphs:
            # Runs, captures, replays.
            found = [stream.forward(batch, pooled, key="mean")[0] for _ in range(3)]
            assert all(np.array_equal(other, found[0]) for other in found)
            result: NDArray[Any] = found[-1]
            return result
        uploaded = stream.upload(batch)
        plain: NDArray[Any] = stream.download(pooled(stream, uploaded)[0])
        return plain


def parity(
    report: Report,
    device: Device,
    emulator: Device,
    shape: Shape,
    seqlens: Sequence[int],
    dtypes: Sequence[str],
) -> None:
    """End to end: against float64, against the emulator, in every batch, and by graph."""
    batch = random_batch(seqlens, shape.vocab_size)
    exact = forward(ReferenceOps("float64"), shape, batch)
    for dtype in dtypes:

        def ops(on: Device, dtype: str = dtype) -> CudaOps:
            return CudaOps(on, name="cuda", dtype=dtype, num_streams=1)

        found = forward(ops(device), shape, batch)
        emulated = forward(ops(emulator), shape, batch)
        error, expected = np.abs(found - exact).max(), np.abs(emulated - exact).max()
        # Both round alike; only the last bits of sums and of approximate functions differ.
        report.check(
            "parity",
            f"{shape.name} {dtype}",
            error <= 2 * expected + 1e-6,
            f"max |unit vector - float64| {error:.2e}, emulator {expected:.2e}, "
            f"between them {np.abs(found - emulated).max():.2e}",
        )
        graph = forward(ops(device), shape, batch, graphs=True)
        report.check("parity", f"{shape.name} {dtype} by graph", np.array_equal(graph, found))
        middle = len(seqlens) // 2
        begin, end = int(batch.cu_seqlens[middle]), int(batch.cu_seqlens[middle + 1])
        alone = forward(ops(device), shape, pack([batch.input_ids[begin:end]]))
        same = np.array_equal(alone[0], found[middle])
        report.check("parity", f"{shape.name} {dtype} alone equals in the batch", same)
