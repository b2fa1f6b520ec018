"""What a kernel runs on and what a launch is: devices, limits, element types."""

from __future__ import annotations

from dataclasses import dataclass

from minibert.errors import DeviceError, InputError

__all__ = [
    "CTYPES",
    "MAX_GRID_Y",
    "MAX_INDEX",
    "Launch",
    "Target",
    "ceil_div",
    "element_type",
    "round_up",
    "target_for",
]

CTYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}
"""Element type of a dtype in the kernels' text."""

MAX_GRID_Y = 65535
"""Most blocks of a grid in y."""

MAX_INDEX = 2**31 - 1
"""Largest int32."""

# Shared memory one block may take after opting in, in bytes, by compute capability.
_SMEM_BYTES = {
    75: 65536,
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    103: 232448,
    110: 232448,
    120: 101376,
    121: 101376,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What the choice of a kernel depends on.

    Attributes:
        compute_capability: 75, 80, ... 120.
        num_sms: streaming multiprocessors.
        smem_bytes: shared memory that one block may take.
    """

    compute_capability: int
    num_sms: int
    smem_bytes: int

    @property
    def arch(self) -> str:
        """Architecture as the compiler names it, `sm_80`."""
        return f"sm_{self.compute_capability}"


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel on one grid.

    Attributes:
        source: file in `kernels/cuda`.
        kernel: name expression of the instance, `layer_norm_kernel<half, 3>`.
        grid_size: blocks in x, y, z.
        block_size: threads of a block.
        smem_bytes: dynamic shared memory of a block.
    """

    source: str
    kernel: str
    grid_size: tuple[int, int, int]
    block_size: int
    smem_bytes: int = 0


def target_for(compute_capability: int, num_sms: int, smem_bytes: int | None = None) -> Target:
    """The target of a device.

    Raises:
        DeviceError: compute capability below 7.5: no int8 tensor cores, and NVRTC 13 does not
            compile for it.
    """
    if compute_capability < 75:
        raise DeviceError(
            f"compute capability must be at least 7.5, got {compute_capability / 10:.1f}; "
            "use device='cpu'"
        )
    if smem_bytes is None:
        smem_bytes = _SMEM_BYTES.get(compute_capability, 101376)
    return Target(compute_capability, num_sms, smem_bytes)


def element_type(target: Target, dtype: str) -> str:
    """Element type of a dtype in the kernels' text.

    Raises:
        InputError: a dtype that the kernels do not know.
        DeviceError: one that this device lacks.
    """
    if dtype not in CTYPES:
        raise InputError(f"dtype must be one of {', '.join(CTYPES)}, got {dtype!r}")
    if dtype == "bfloat16" and target.compute_capability < 80:
        raise DeviceError(
            "bfloat16 needs compute capability 8.0, "
            f"got {target.compute_capability / 10:.1f}; use dtype='float16'"
        )
    return CTYPES[dtype]


def ceil_div(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The next multiple of b."""
    return ceil_div(a, b) * b
