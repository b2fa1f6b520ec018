"""Limits of a launch, by compute capability, as the CUDA C++ programming guide lists them."""

from __future__ import annotations

from minibert.kernels.emulator.faults import LaunchError

__all__ = ["DEFAULT_SMEM_BYTES", "check_launch", "compute_capability", "max_smem_bytes"]

DEFAULT_SMEM_BYTES = 48 * 1024
_MAX_SMEM_KB = {
    70: 96, 72: 96, 75: 64, 80: 163, 86: 99, 87: 163, 88: 99, 89: 99, 90: 227, 100: 227, 103: 227,
    110: 227, 120: 99, 121: 99,
}  # fmt: skip
_GRID = (2**31 - 1, 65535, 65535)
_BLOCK = (1024, 1024, 64)
_THREADS = 1024


def compute_capability(arch: str) -> int:
    """`sm_80` to 80.

    Raises:
        LaunchError: if the architecture is not known.
    """
    digits = arch.removeprefix("sm_").removeprefix("compute_").rstrip("af")
    if not digits.isdigit() or int(digits) not in _MAX_SMEM_KB:
        known = ", ".join(f"sm_{number}" for number in _MAX_SMEM_KB)
        raise LaunchError(f"arch must be one of {known}, got {arch!r}")
    return int(digits)


def max_smem_bytes(arch: int) -> int:
    """Shared memory that a block may have, after opting in."""
    return _MAX_SMEM_KB[arch] * 1024


def check_launch(
    arch: int,
    name: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    *,
    static_bytes: int,
    dynamic_bytes: int,
    opted_in: int | None,
    max_threads: int,
    required: tuple[int, ...],
) -> None:
    """Refuse what a device of the architecture would refuse.

    Args:
        arch: compute capability.
        name: of the kernel.
        grid: blocks.
        block: threads.
        static_bytes: shared memory that the kernel declares.
        dynamic_bytes: shared memory of the launch.
        opted_in: `max_dynamic_shared_size_bytes`, if it was set.
        max_threads: of `__launch_bounds__`, or 0.
        required: block that the kernel demands, or empty.

    Raises:
        LaunchError: naming the limit.
    """

    def refuse(what: str, rule: str, got: object) -> None:
        raise LaunchError(f"{what} of {name} must be {rule} on sm_{arch}, got {got}")

    for axis, extent, most in zip("xyz", grid, _GRID, strict=True):
        if not 1 <= extent <= most:
            refuse(f"grid.{axis}", f"from 1 to {most}", extent)
    for axis, extent, most in zip("xyz", block, _BLOCK, strict=True):
        if not 1 <= extent <= most:
            refuse(f"block.{axis}", f"from 1 to {most}", extent)
    threads = block[0] * block[1] * block[2]
    if threads > _THREADS:
        refuse("threads of a block", f"at most {_THREADS}", threads)
    if max_threads and threads > max_threads:
        refuse("threads of a block", f"at most {max_threads} (__launch_bounds__)", threads)
    if required and tuple(block[: len(required)]) != required:
        refuse("block", f"{required}", block)
    if dynamic_bytes < 0:
        refuse("shared_mem", "at least 0", dynamic_bytes)
    total = static_bytes + dynamic_bytes
    if total > max_smem_bytes(arch):
        refuse("shared memory of a block", f"at most {max_smem_bytes(arch)} bytes", total)
    allowed = DEFAULT_SMEM_BYTES - static_bytes if opted_in is None else opted_in
    if dynamic_bytes > allowed:
        rule = f"at most {allowed} bytes unless max_dynamic_shared_size_bytes is set higher"
        refuse("dynamic shared memory", rule, dynamic_bytes)
