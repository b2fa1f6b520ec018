"""From the `device` argument to an Ops, with the reason for the choice."""

from __future__ import annotations

import logging

from minibert.errors import DeviceError
from minibert.ops.interface import Ops
from minibert.ops.reference import ReferenceOps

DEVICES = ("auto", "cpu", "numpy")
MATMUL_PRECISIONS = ("highest", "high", "medium")

_log = logging.getLogger("minibert")


def make_ops(
    device: str, *, dtype: str, matmul_precision: str, threads: int | None
) -> tuple[Ops, str]:
    """Make the Ops of a device.

    Args:
        device: one of `DEVICES`; "numpy" is the reference without kernels.
        dtype: how linear layers compute.
        matmul_precision: for float32, how exactly.
        threads: most threads of the CPU kernels; all usable cores when None.

    Returns:
        The Ops, and a sentence that says why it was chosen.

    Raises:
        DeviceError: an unknown device, or one that cannot do what was asked.
    """
    if matmul_precision not in MATMUL_PRECISIONS:
        raise DeviceError(
            f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, "
            f"got {matmul_precision!r}"
        )
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
    ):
        raise DeviceError(f"threads must be at least 1, got {threads!r}")
    if device not in DEVICES:
        raise DeviceError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    ops, reason = _cpu(device, dtype, matmul_precision, threads)
    _log.info("device %r: ops %s (%s)", device, ops.name, reason)
    return ops, reason


def _cpu(device: str, dtype: str, matmul_precision: str, threads: int | None) -> tuple[Ops, str]:
    """The kernels where they were built; else NumPy, whose float32 meets every precision."""
    if device == "numpy":
        return ReferenceOps(dtype), "asked for"
    if dtype == "float64":
        return ReferenceOps(dtype), "float64 is computed by NumPy"
    from minibert.ops import cpu

    built, why = cpu.available()
    if built:
        ops = cpu.CpuOps(dtype, matmul_precision=matmul_precision, threads=threads)
        return ops, f"own kernels, {why}, {ops.num_streams} threads"
    return ReferenceOps(dtype), f"NumPy: {why}"
