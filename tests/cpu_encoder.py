"""A small encoder over any Ops; the CPU paths of this machine, and arrays on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.batch import Batch
from minibert.kernels.cpu import loader
from minibert.ops.cpu import CpuArray, CpuOps, available

BUILT, REASON = available()
needs_kernels = pytest.mark.skipif(not BUILT, reason=REASON)
PATHS = [path.name for path in loader.all_paths() if path.supported] if BUILT else []
HEADS, HEAD_DIM, HIDDEN, WIDE, LAYERS = 3, 16, 48, 112, 2


class Encoder:
    """A small encoder with random weights, over any Ops."""

    def __init__(self, ops: Any) -> None:
        rng = np.random.default_rng(0)

        def array(*shape: int) -> Any:
            return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

        def norm() -> Any:
            return ops.prepare_layer_norm(1 + array(HIDDEN), array(HIDDEN), eps=1e-12)

        def linear(out_features: int, in_features: int) -> Any:
            weight = array(out_features, in_features)
            return ops.prepare_linear(weight, array(out_features), name="test")

        self.tables = [ops.prepare_embedding(array(n, HIDDEN)) for n in (100, 600, 2)]
        self.norm = norm()
        self.layers = [
            (
                linear(3 * HIDDEN, HIDDEN),
                linear(HIDDEN, HIDDEN),
                norm(),
                linear(WIDE, HIDDEN),
                linear(HIDDEN, WIDE),
                norm(),
            )
            for _ in range(LAYERS)
        ]

    def __call__(self, ops: Any, batch: Batch, *, alone: bool = False) -> Any:
        with ops.stream(alone=alone) as running:
            uploaded = running.upload(batch)
            hidden = running.embed(uploaded, self.tables, self.norm)
            for qkv, output, norm, up, down, last_norm in self.layers:
                context = running.attention(
                    running.linear(hidden, qkv),
                    uploaded,
                    num_heads=HEADS,
                    head_dim=HEAD_DIM,
                    softmax_scale=HEAD_DIM**-0.5,
                )
                hidden = running.layer_norm(running.linear(context, output, residual=hidden), norm)
                wide = running.linear(hidden, up, activation="gelu")
                hidden = running.layer_norm(running.linear(wide, down, residual=hidden), last_norm)
            return running.download(running.normalize(running.pool(hidden, uploaded, "mean")))


def texts(seed: int, seqlens: list[int]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, n).astype(np.int32) for n in seqlens]


def put(ops: CpuOps, values: Any) -> CpuArray:
    """A NumPy array in the memory of a running stream."""
    values = np.ascontiguousarray(values, np.float32)
    out = CpuArray(ops._state.memory, *values.shape)
    if values.size:
        ops._native.copy_columns(out.address, out.cols, 0, values.ctypes.data, out.cols, out.rows)
    return out
