"""The kernel instances that models of the usual shapes run, as the launch functions choose them.

The resource table of `docs/kernels.md`, the assembly test and the GPU check walk over this list, so
that what they see is what an engine launches.
"""

from __future__ import annotations

from collections.abc import Iterator

from minibert.kernels.cuda import launch
from minibert.kernels.cuda.launch import Launch, Target, target_for

__all__ = ["ARCHITECTURES", "catalogue", "target_of"]

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities that are compiled and assembled in every test run."""

_NUM_SMS = {75: 40, 80: 108, 86: 84, 89: 58, 90: 132, 100: 148, 120: 170}
_HIDDEN_SIZES = (384, 768, 1024)
_HEAD_DIMS = (32, 64, 96, 128)
_TOKENS = (1, 16, 32, 128, 4096)


def target_of(compute_capability: int) -> Target:
    """A target with the multiprocessors of a common card of that capability."""
    return target_for(compute_capability, _NUM_SMS[compute_capability])


def catalogue(target: Target) -> Iterator[Launch]:
    """Every instance once: the encoder's operations in every dtype that the target has."""
    seen: set[tuple[str, str]] = set()
    for item in _all(target):
        if (item.source, item.kernel) not in seen:
            seen.add((item.source, item.kernel))
            yield item


def _all(target: Target) -> Iterator[Launch]:
    dtypes = [
        dtype for dtype in launch.CTYPES if dtype != "bfloat16" or target.compute_capability >= 80
    ]
    for dtype in dtypes:
        for hidden_size in _HIDDEN_SIZES:
            yield launch.embed_layer_norm(target, dtype, num_tokens=64, hidden_size=hidden_size)
            yield launch.layer_norm(target, dtype, num_tokens=64, hidden_size=hidden_size)
        for head_dim in _HEAD_DIMS:
            yield launch.attention(
                target, dtype, num_tiles=1, num_heads=12, head_dim=head_dim, row_stride=96
            )
        for activation in ("gelu", None):
            yield from _linear(target, dtype, activation, _TOKENS, quantized=False)
        for activation in ("gelu_tanh", "relu", "silu", "tanh"):
            yield from _linear(target, dtype, activation, (32,), quantized=False)
        if launch.has_sparse_gemm(target, dtype):
            yield from _sparse(target, dtype)
        yield launch.normalize(target, dtype, num_rows=4)
        for mode in launch.POOL_MODES:
            yield launch.pool(target, dtype, mode, num_seqs=4, hidden_size=384)
        yield launch.copy_columns(target, dtype, "float32", num_rows=4, written_columns=384)
    yield launch.quantize_rows(target, "float16", num_tokens=64)
    yield launch.quantize_rows_fixed(target, "float16", num_tokens=64)
    for activation in ("gelu", None):
        yield from _linear(target, "float16", activation, _TOKENS, quantized=True)


def _sparse(target: Target, dtype: str) -> Iterator[Launch]:
    for num_rows in _TOKENS:
        for activation in ("gelu", None):
            for out_features in (384, 3072):
                yield launch.gemm_sparse(
                    target,
                    dtype,
                    activation,
                    num_rows=num_rows,
                    out_features=out_features,
                    in_features=768,
                )


def _linear(
    target: Target,
    dtype: str,
    activation: str | None,
    tokens: tuple[int, ...],
    *,
    quantized: bool,
) -> Iterator[Launch]:
    for num_rows in tokens:
        for out_features in (384, 3072):
            yield launch.gemm(
                target,
                dtype,
                activation,
                num_rows=num_rows,
                out_features=out_features,
                in_features=768,
                quantized=quantized,
            )
            if num_rows <= launch.NARROW_ROWS and dtype != "float32":
                yield launch.gemm_narrow(
                    target,
                    dtype,
                    activation,
                    num_rows=num_rows,
                    out_features=out_features,
                    in_features=768,
                    quantized=quantized,
                )
