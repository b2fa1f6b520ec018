"""What the units of a device reach at most: tensor cores, special functions, barriers.

Ceilings that no library call shows: how fast `mma.sync` is when nothing else is done, how many
exponentials a second, what a barrier of all blocks costs. Every kernel's result is checked before
it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.clock import Contender, race
from benchmarks.gpu.timings import Bench
from minibert.kernels.cuda.device import Device
from minibert.kernels.cuda.launch import Launch

__all__ = ["Sizes", "barriers", "functions", "tensor_cores"]

SOURCE = str(Path(__file__).with_name("peaks.cu"))
_BLOCK_SIZE, _CHAINS = 256, 8

# K of one instruction, and operations that it does.
_MMA = {"half": 16, "bfloat16": 16, "int8": 32}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work.

    Attributes:
        blocks_per_sm: of the loops; 0 for one block in all.
        num_steps: of the loops.
        num_barriers: of one launch.
    """

    blocks_per_sm: int = 2
    num_steps: int = 4096
    num_barriers: int = 200

    def blocks(self, device: Device) -> int:
        """Blocks of a loop's grid."""
        return max(1, self.blocks_per_sm * device.target.num_sms)


def tensor_cores(bench: Bench, sizes: Sizes) -> None:
    """`mma.sync` from registers, dense and 2:4 sparse; TFLOP/s or TOP/s as the note says."""
    modern = bench.device.target.compute_capability >= 80
    kernels = {f"mma_peak_kernel<{t}>": (t, 1) for t in _MMA if modern or t != "bfloat16"}
    if modern:
        kernels |= {f"mma_sparse_peak_kernel<{t}>": (t, 2) for t in ("half", "bfloat16")}
    for kernel, (operand, dense_factor) in kernels.items():
        depth = _MMA[operand]
        threads = sizes.blocks(bench.device) * _BLOCK_SIZE
        expected = np.full(threads, 4.0 * _CHAINS * sizes.num_steps * depth, np.float32)
        operations = threads // 32 * _CHAINS * sizes.num_steps * 2.0 * 16 * 8 * depth
        note = f"{operations * dense_factor / 1e9:.3f} G operations"
        _loop(bench, kernel, expected, (sizes.num_steps,), sizes, note + _of(dense_factor))


def functions(bench: Bench, sizes: Sizes) -> None:
    """Exponentials, tanh and the exact erf; numbers a second as the note says."""
    start = {"kExp2": 0.5, "kTanh": 0.5, "kErf": 0.5}
    for name, pair in (("kExp2", 1), ("kExp2Half2", 2), ("kTanh", 1), ("kErf", 1)):
        bits = _bits(start.get(name, 0.5), pair)
        threads = sizes.blocks(bench.device) * _BLOCK_SIZE
        numbers = threads * _CHAINS * sizes.num_steps * pair
        _loop(
            bench,
            f"function_peak_kernel<{name}>",
            _between(pair),
            (sizes.num_steps, np.uint32(bits)),
            sizes,
            f"{numbers / 1e9:.3f} G numbers",
        )


def barriers(bench: Bench, sizes: Sizes) -> None:
    """What a barrier of the whole grid costs, and one of a cluster of 8 blocks."""
    device = bench.device
    blocks = device.target.num_sms if sizes.blocks_per_sm else 2
    counter = device.to_device(np.zeros(1, np.int32))
    fresh = np.zeros(1, np.int32)
    stream = device.new_stream()
    host = device.empty_pinned(4)

    def reset() -> None:
        host[...] = fresh.view(np.uint8)
        device.copy_in(counter, host, stream)

    def grid() -> None:
        reset()
        made = Launch(SOURCE, "grid_barrier_kernel", (blocks, 1, 1), 32)
        device.launch(made, counter, sizes.num_barriers)

    with device.use(stream):
        grid()
    found = int(_fetch(device, stream, counter, np.dtype(np.int32))[0])
    expected = blocks * sizes.num_barriers
    bench.report.check(
        "peaks", "grid barrier", found == expected, f"counted {found}, expected {expected}"
    )
    note = f"{sizes.num_barriers} barriers of {blocks} blocks in one launch, and one small copy"
    _race(bench, "grid barrier", grid, stream, note)
    if device.target.compute_capability < 90:
        bench.report.skipped["cluster barrier"] = "begins with compute capability 9.0"
        return
    clusters = max(1, blocks // 8)
    done = device.to_device(np.zeros(8 * clusters, np.int32))
    made = Launch(SOURCE, "cluster_barrier_kernel", (8 * clusters, 1, 1), 32)

    def cluster() -> None:
        device.launch(made, done, sizes.num_barriers)

    with device.use(stream):
        cluster()
    counts = _fetch(device, stream, done, np.dtype(np.int32))
    ok = bool((counts == sizes.num_barriers).all())
    bench.report.check("peaks", "cluster barrier", ok, f"counted {counts.min()} to {counts.max()}")
    note = f"{sizes.num_barriers} barriers of {clusters} clusters of 8 blocks in one launch"
    _race(bench, "cluster barrier", cluster, stream, note)
    bench.report.skipped["cluster barrier of 16 blocks"] = "CuPy cannot opt in to that size"


def _loop(
    bench: Bench,
    kernel: str,
    expected: NDArray[Any] | Callable[[NDArray[Any]], bool],
    arguments: tuple[Any, ...],
    sizes: Sizes,
    note: str,
) -> None:
    """Check one loop's result, then time it."""
    device = bench.device
    blocks = sizes.blocks(device)
    nbytes = 4 * blocks * _BLOCK_SIZE
    out = device.view(device.empty(nbytes), 0, (blocks * _BLOCK_SIZE,), "<f4")
    stream = device.new_stream()
    made = Launch(SOURCE, kernel, (blocks, 1, 1), _BLOCK_SIZE)

    def work() -> None:
        device.launch(made, out, *arguments)

    with device.use(stream):
        work()
    found = _fetch(device, stream, out, np.dtype(np.float32))
    ok = expected(found) if callable(expected) else bool(np.array_equal(found, expected))
    bench.report.check("peaks", kernel, ok, f"first result {found[0]:g}")
    _race(bench, kernel, work, stream, note)


def _race(bench: Bench, name: str, work: Callable[[], None], stream: Any, note: str) -> None:
    contender = Contender(work, bench.clock, lambda: bench.device.use(stream))
    race(bench.report, "peaks", name, {"this device": contender}, bench.rounds, note=note)


def _fetch(device: Device, stream: Any, array: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    host = device.empty_pinned(array.nbytes)
    with device.use(stream):
        device.copy_out(host, array, stream)
        device.synchronize(stream)
    return np.array(host.view(dtype))


def _bits(value: float, pair: int) -> int:
    if pair == 1:
        return int(np.float32(value).view(np.uint32))
    half = int(np.float16(value).view(np.uint16))
    return half << 16 | half


def _between(pair: int) -> Callable[[NDArray[Any]], bool]:
    """Values that the iteration can have: not above its start, not below -1."""

    def check(found: NDArray[Any]) -> bool:
        values = found if pair == 1 else found.view(np.float16).astype(np.float32)
        return bool((values <= 0.625).all() and (values >= -1).all())

    return check


def _of(dense_factor: int) -> str:
    return "" if dense_factor == 1 else ", counted as the dense product"
