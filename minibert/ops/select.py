"""From the `device` argument to an Ops, with the reason for the choice."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec

from minibert.errors import DeviceError, MissingDependencyError
from minibert.ops.interface import Ops
from minibert.ops.reference import ReferenceOps

DEVICES = ("auto", "cpu", "numpy", "cuda", "cuda:<number>", "emulator", "emulator:<capability>")
MATMUL_PRECISIONS = ("highest", "high", "medium")

_DEVICE = re.compile(r"auto|cpu|numpy|(cuda|emulator)(:\d+)?")
_log = logging.getLogger("minibert")


def make_ops(
    device: str,
    *,
    dtype: str | None,
    matmul_precision: str,
    threads: int | None,
    quantized: bool = False,
) -> tuple[Ops, str]:
    """Make the Ops of a device.

    Args:
        device: one of `DEVICES`; "auto" is a GPU where one is usable, else the CPU; "numpy" is
            the reference without kernels; "emulator" runs the CUDA kernels without a GPU, slowly,
            for checking.
        dtype: how linear layers compute; None for int8 where the checkpoint is quantised and the
            device has it, else float32.
        matmul_precision: for float32, how exactly.
        threads: most threads of the CPU kernels; all usable cores when None.
        quantized: whether the checkpoint holds int8 weights.

    Returns:
        The Ops, and a sentence that says why it was chosen.

    Raises:
        DeviceError: an unknown device, or one that cannot do what was asked.
    """
    check_device(device, matmul_precision=matmul_precision, threads=threads)
    made: tuple[Ops, str] | None = None
    if device.startswith(("cuda", "emulator")):
        made = _gpu(device, dtype, quantized), "asked for"
    elif device == "auto":
        made = _gpu_if_usable(dtype, quantized)
    ops, reason = made or _cpu(device, dtype, matmul_precision, threads, quantized)
    _log.info("device %r: ops %s (%s)", device, ops.name, reason)
    return ops, reason


def check_device(device: str, *, matmul_precision: str, threads: int | None) -> None:
    """Refuse arguments that no model could make right, before one is looked for.

    Raises:
        DeviceError: as `make_ops`.
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
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise DeviceError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")


def _gpu_if_usable(dtype: str | None, quantized: bool) -> tuple[Ops, str] | None:
    """A GPU, where CuPy is installed and finds one; why not goes to the log."""
    spec = find_spec("cupy")
    if dtype == "float64" or spec is None or spec.origin is None:  # an empty folder is no CuPy
        return None
    try:
        return _gpu("cuda", dtype, quantized), "a usable GPU was found"
    except (DeviceError, MissingDependencyError) as error:
        _log.info("device 'auto': no GPU is used: %s", error)
        return None


def _gpu(device: str, dtype: str | None, quantized: bool) -> Ops:
    from minibert.ops.cuda import cuda_ops

    return cuda_ops(device, dtype or ("int8" if quantized else "float32"))


def _cpu(
    device: str, dtype: str | None, matmul_precision: str, threads: int | None, quantized: bool
) -> tuple[Ops, str]:
    """The kernels where they were built; else NumPy, whose float32 meets every precision."""
    if device == "numpy":
        return ReferenceOps(dtype or "float32"), "asked for"
    if dtype == "float64":
        return ReferenceOps(dtype), "float64 is computed by NumPy"
    from minibert.ops import cpu

    built, why = cpu.available()
    if built:
        dtype = dtype or ("int8" if quantized else "float32")
        ops = cpu.CpuOps(dtype, matmul_precision=matmul_precision, threads=threads)
        return ops, f"own kernels, {why}, {ops.num_streams} threads"
    return ReferenceOps(dtype or "float32"), f"NumPy: {why}"
