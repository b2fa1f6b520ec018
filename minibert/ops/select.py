"""From the `device` and `devices` arguments to Ops, with the reason for the choice."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minibert import log
from minibert.arguments import is_integer
from minibert.errors import DeviceError, DeviceOptionError, MissingDependencyError
from minibert.ops.interface import Ops, check_matmul_precision

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background
    from minibert.ops.reference import ReferenceOps

DEVICES = ("auto", "cpu", "numpy", "cuda", "cuda:<number>", "emulator", "emulator:<capability>")

_DEVICE = re.compile(r"auto|cpu|numpy|(cuda|emulator)(:\d+)?")


class DeviceOptions(NamedTuple):
    """How a device computes, and what it may do.

    Attributes:
        dtype: how linear layers compute; None for int8 where the checkpoint is quantised and the
            device has it, else float32.
        matmul_precision: for float32, how exactly.
        threads: most threads of the CPU kernels; all usable cores when None.
        batch_invariant: False permits kernels whose last bits depend on the batch.
        float_layers: linear layers that int8 leaves in float, such as "layer.0.qkv"; CUDA only.
        packed_weights: folder where the CPU kernels keep the weights as they laid them out.
    """

    dtype: str | None = None
    matmul_precision: str = "highest"
    threads: int | None = None
    batch_invariant: bool = True
    float_layers: tuple[str, ...] = ()
    packed_weights: Path | None = None

    def chosen_dtype(self, quantized: bool) -> str:
        """The dtype of a device that has int8."""
        return self.dtype or ("int8" if quantized else "float32")


def make_ops(
    device: str,
    options: DeviceOptions | None = None,
    *,
    quantized: bool = False,
    model_folder: Path | None = None,
    background: Background | None = None,
) -> tuple[Ops, str]:
    """Make the Ops of a device.

    Args:
        device: one of `DEVICES`; "auto" is a GPU where one is usable, else the CPU; "numpy" is
            the reference without kernels; "emulator" runs the CUDA kernels without a GPU, slowly,
            for checking.
        options: how it computes.
        quantized: whether the checkpoint holds int8 weights.
        model_folder: which packed weights belong to; they are not kept when None.
        background: where the CPU kernels lay out weights; they do it at once when None.

    Returns:
        The Ops, and a sentence that says why it was chosen.

    Raises:
        DeviceError: an unknown device, or one that cannot do what was asked.
    """
    options = options or DeviceOptions()
    check_device(device, options)
    made: tuple[Ops, str] | None = None
    if _is_gpu(device):
        made = _gpu(device, options, quantized), "asked for"
    elif device == "auto":
        made = _gpu_if_usable(options, quantized)
    ops, reason = made or _cpu(device, options, quantized, model_folder, background)
    log.info("device %r: ops %s (%s)", device, ops.name, reason)
    return ops, reason


def make_devices(
    device: str,
    devices: Sequence[str] | None,
    options: DeviceOptions,
    *,
    quantized: bool = False,
    model_folder: Path | None = None,
    background: Background | None = None,
) -> tuple[list[Ops], str]:
    """Make the Ops of several devices, or of the one that `device` names.

    Args:
        device: as in `make_ops`; "auto" where `devices` are given.
        devices: GPUs, or emulators, of one architecture: a text has the same bytes on each.
        options: how they compute.
        quantized: as in `make_ops`.
        model_folder: as in `make_ops`.
        background: as in `make_ops`.

    Returns:
        The Ops, at least one, and a sentence that says why they were chosen.

    Raises:
        DeviceError: as `make_ops`, or devices that would not give the same bytes. None is left
            open.
    """
    check_devices(device, devices, options)
    if devices is None:
        ops, reason = make_ops(
            device,
            options,
            quantized=quantized,
            model_folder=model_folder,
            background=background,
        )
        return [ops], reason
    made: list[Ops] = []
    try:
        made += (make_ops(name, options, quantized=quantized)[0] for name in devices)
        _check_alike(devices, made)
    except BaseException:
        close_all(made)
        raise
    return made, f"asked for: {', '.join(devices)}"


def keep_packed(devices: Iterable[Ops]) -> None:
    """Write packed weights that were not found, once all are laid out."""
    for ops in devices:
        packed = getattr(ops, "packed", None)
        if packed is not None:
            packed.save()


def close_all(devices: Iterable[Ops]) -> None:
    """Close every one of them, whatever happens to the others."""
    with ExitStack() as stack:
        for ops in devices:
            stack.callback(ops.close)


# ---- refusals that need no device ------------------------------------------------------------
def check_device(device: str, options: DeviceOptions) -> None:
    """Refuse arguments that no model could make right, before one is looked for.

    Raises:
        DeviceOptionError: as `make_ops`.
    """
    precision, threads = options.matmul_precision, options.threads
    check_matmul_precision(precision)
    if threads is not None and (not is_integer(threads) or threads < 1):
        raise DeviceOptionError(f"threads must be at least 1, got {threads!r}")
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise DeviceOptionError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if _is_gpu(device) and precision != "highest":
        raise DeviceOptionError(
            f"matmul_precision must be highest on {_kind(device)}, got {precision!r}: float32 is "
            "computed by float32 multiply-adds there; tensor cores are used by dtype='bfloat16', "
            "'float16' or 'int8'"
        )
    if device in ("cpu", "numpy") and options.float_layers:
        raise DeviceOptionError(
            f"float_layers must be empty on {device}, got {list(options.float_layers)}: "
            "`minibert quantize` chooses the layers that stay float there"
        )


def check_devices(device: str, devices: Sequence[str] | None, options: DeviceOptions) -> None:
    """Refuse lists of devices that cannot work together, before a model is looked for.

    Raises:
        DeviceOptionError: as `make_devices`.
    """
    if devices is None:
        check_device(device, options)
        return
    if device != "auto":
        raise DeviceOptionError(f"device must not be given beside devices, got {device!r}")
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not devices:
        raise DeviceOptionError(
            f"devices must be a list such as ['cuda:0', 'cuda:1'], not empty, got {devices!r}"
        )
    for name in devices:
        check_device(name, options)
        if not _is_gpu(name):
            raise DeviceOptionError(
                "devices must all be cuda or emulator devices, "
                f"got {name!r}: device={name!r} uses all cores by itself"
            )
    kinds = sorted({_kind(name) for name in devices})
    if len(kinds) > 1:
        raise DeviceOptionError(
            f"devices must be of one kind, got {' and '.join(kinds)}: the last bits of a text "
            "would depend on the device that it falls to"
        )
    numbers = [name.partition(":")[2] or "0" for name in devices]
    if kinds == ["cuda"] and len({int(number) for number in numbers}) < len(numbers):
        raise DeviceOptionError(f"devices must name each GPU once, got {list(devices)}")


def check_float_layers(float_layers: object) -> tuple[str, ...]:
    """The names as a tuple.

    Raises:
        DeviceOptionError: something else than names.
    """
    if isinstance(float_layers, str) or not (
        isinstance(float_layers, Collection) and all(isinstance(x, str) for x in float_layers)
    ):
        raise DeviceOptionError(
            f"float_layers must be names such as ['layer.0.qkv'], got {float_layers!r}"
        )
    return tuple(float_layers)


def _check_alike(names: Sequence[str], made: Sequence[Any]) -> None:
    """Refuse GPUs of several architectures: their tensor cores add in different orders."""
    found = [ops.device.target.compute_capability for ops in made]
    if len(set(found)) > 1:
        shown = ", ".join(
            f"{name} ({capability / 10:.1f})" for name, capability in zip(names, found, strict=True)
        )
        raise DeviceError(
            f"devices must have one compute capability, got {shown}: the last bits of a text "
            "would depend on the device that it falls to"
        )


def _is_gpu(device: str) -> bool:
    return _kind(device) in ("cuda", "emulator")


def _kind(device: str) -> str:
    return device.partition(":")[0]


# ---- making ----------------------------------------------------------------------------------
def _gpu_if_usable(options: DeviceOptions, quantized: bool) -> tuple[Ops, str] | None:
    """A GPU, where CuPy finds one and it computes what is asked; why not goes to the log."""
    spec = find_spec("cupy")
    if options.dtype == "float64" or spec is None or spec.origin is None:  # an empty folder is none
        return None
    try:
        check_device("cuda", options)
        ops = _gpu("cuda", options, quantized)
    except (DeviceError, MissingDependencyError) as error:
        log.info("device 'auto': no GPU is used: %s", error)
        return None
    _warn_of_untried_kernels()
    return ops, "a usable GPU was found"


@cache
def _warn_of_untried_kernels() -> None:
    """Once in a process: compression makes Ops again and again."""
    log.warning(
        "device 'auto' took a GPU, whose kernels have run on the emulator only, never on hardware: "
        "device='cpu' does without them, device='cuda' without this warning"
    )


def _gpu(device: str, options: DeviceOptions, quantized: bool) -> Ops:
    from minibert.ops.cuda import cuda_ops

    return cuda_ops(
        device,
        options.chosen_dtype(quantized),
        batch_invariant=options.batch_invariant,
        float_layers=options.float_layers,
    )


def _cpu(
    device: str,
    options: DeviceOptions,
    quantized: bool,
    model_folder: Path | None,
    background: Background | None,
) -> tuple[Ops, str]:
    """The kernels where they were built; else NumPy, whose float32 meets every precision."""
    if device == "auto":
        check_device("cpu", options)
    if device == "numpy":
        return _reference(options.dtype), "asked for"
    if options.dtype == "float64":
        return _reference("float64"), "float64 is computed by NumPy"
    from minibert.ops import cpu

    built, why = cpu.available()
    if built:
        dtype, folder = options.chosen_dtype(quantized), options.packed_weights
        packed = None
        if folder is not None and model_folder is not None:
            from minibert.ops.packed_file import open_packed

            packed = partial(
                open_packed,
                folder,
                model_folder,
                dtype=dtype,
                matmul_precision=options.matmul_precision,
            )
        ops = cpu.CpuOps(
            dtype,
            packed=packed,
            matmul_precision=options.matmul_precision,
            threads=options.threads,
            background=background,
        )
        return ops, f"own kernels, {why}, {ops.num_streams} threads"
    if cpu.is_built():  # a name that is no path asked for something else than NumPy
        raise DeviceOptionError(why)
    return _reference(options.dtype), f"NumPy: {why}"


def _reference(dtype: str | None) -> ReferenceOps:
    from minibert.ops.reference import ReferenceOps

    return ReferenceOps(dtype or "float32")
