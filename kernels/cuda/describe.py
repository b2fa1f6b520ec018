"""Which kernel does what on a device, and why, for people."""

from __future__ import annotations

from minibert.kernels.cuda.linear import NARROW_ROWS, gemm_tiles, sparse_tiles
from minibert.kernels.cuda.target import Target

__all__ = ["describe"]


def describe(target: Target) -> dict[str, tuple[bool, str]]:
    """The choices of the launch functions for a device.

    Returns:
        Operation -> whether the device has a kernel for it, and which and why.
    """
    capability = target.compute_capability
    modern = capability >= 80
    float_step, int8_step = ("m16n8k16", "m16n8k32") if modern else ("m16n8k8", "m8n8k16")
    tiles = gemm_tiles(target)
    if modern:
        deep = f"{target.smem_bytes // 1024} KB of shared memory"
        copies = f"cp.async, {tiles[0].stages} to {tiles[-1].stages} stages because of {deep}"
    else:
        copies = "copies through registers, 2 stages: cp.async begins with 8.0"
    shape = "tiles as large as still give each of "
    shape += f"{target.num_sms} multiprocessors one"
    absent = f"none: it needs compute capability 8.0, this is {capability / 10:.1f}"
    found = {
        "linear float32": (True, "gemm_float32.cu: float32 multiply-adds, exact, no TF32"),
        "linear float16": (True, f"gemm.cu: mma.sync {float_step}; {copies}; {shape}"),
        "linear bfloat16": (modern, f"as float16: mma.sync {float_step}" if modern else absent),
        "linear int8": (
            True,
            f"gemm_int8.cu: mma.sync {int8_step}, copies and tiles as float16; gemm_narrow.cu up "
            f"to {NARROW_ROWS} tokens, whose integer sums are the same bytes",
        ),
        "linear 2:4 sparse": (
            modern,
            f"gemm_sparse.cu: mma.sp m16n8k32 in 16 bits, {sparse_tiles(target)[0].stages} to "
            f"{sparse_tiles(target)[-1].stages} stages; dense in int8 and float32"
            if modern
            else f"the dense kernels: mma.sp begins with 8.0, this is {capability / 10:.1f}",
        ),
        "few tokens": (
            True,
            f"gemm_narrow.cu up to {NARROW_ROWS} tokens in 16 bits only with "
            "batch_invariant=False: it splits K, so last bits depend on the batch",
        ),
        "attention float32": (True, "attention_float32.cu: float32 multiply-adds"),
        "attention 16 bits": (True, f"attention.cu: mma.sync {float_step}, online softmax"),
    }
    if capability >= 90:
        unused = "wgmma" if capability < 100 else "tcgen05"
        found["beyond 8.0"] = (False, f"{unused} is not used: the kernels are those of 8.0")
    return found
