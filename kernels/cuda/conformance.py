"""Asks a device what the inline PTX of the kernels means, and compares with the PTX ISA.

The kernels of `conformance.cu` take raw registers and give raw registers. The fragment layouts are
written down here once more, from the ISA and apart from the kernels that rely on them. Runs on a
GPU and in the emulator alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.kernels.cuda.device import Device
from minibert.kernels.cuda.launch import Launch

__all__ = ["Finding", "check_conformance"]

Float64 = NDArray[np.float64]

_G, _T = np.divmod(np.arange(32), 4)  # row group and place in the group of each lane


@dataclass(frozen=True, slots=True)
class Finding:
    """One wrapper on one device.

    Attributes:
        name: the device function.
        error: largest difference to the ISA.
        allowed: largest that its rounding can explain; 0 where the result is exact.
    """

    name: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the device computes what the ISA says."""
        return bool(self.error <= self.allowed)


def check_conformance(device: Device, seed: int = 0) -> Iterator[Finding]:
    """Run every wrapper that the device's architecture has.

    Args:
        device: a GPU or the emulator.
        seed: of the random operands.
    """
    rng = np.random.default_rng(seed)
    run = _Runner(device)
    dtypes = ("half", "bfloat16") if device.target.compute_capability >= 80 else ("half",)
    for dtype in dtypes:
        yield _mma_float(run, rng, dtype)
        yield _convert(run, rng, dtype)
        if device.target.compute_capability >= 80:
            yield from (_mma_sparse(run, rng, dtype, selector) for selector in (0, 1))
    yield _mma_int8(run, rng)
    for transposed in (False, True):
        yield _ldmatrix(run, rng, transposed)
    yield _copy(run, rng)
    yield from _warp(run, rng)


class _Runner:
    """Launches one warp and brings its results back."""

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.new_stream()

    def __call__(
        self, kernel: str, outputs: tuple[tuple[tuple[int, ...], str], ...], *inputs: NDArray[Any]
    ) -> list[NDArray[Any]]:
        device = self.device
        made = [
            device.view(device.empty(4 * int(np.prod(shape))), 0, shape, dtype)
            for shape, dtype in outputs
        ]
        arguments = [device.to_device(array) for array in inputs]
        hosts = [device.empty_pinned(4 * int(np.prod(shape))) for shape, _ in outputs]
        with device.use(self.stream):
            device.launch(Launch("conformance.cu", kernel, (1, 1, 1), 32), *made, *arguments)
            for host, array in zip(hosts, made, strict=True):
                device.copy_out(host, array, self.stream)
            device.synchronize(self.stream)
        return [
            np.array(host.view(dtype).reshape(shape))
            for host, (shape, dtype) in zip(hosts, outputs, strict=True)
        ]


def _fragments(matrix: NDArray[Any], places: list[tuple[int, int]], width: int) -> NDArray[Any]:
    """Registers (32, len(places)) of 4 bytes: each holds `width` neighbours of a row.

    Args:
        matrix: (rows, k).
        places: first row and first column of each register for lane group and place (0, 0).
        width: elements of a register.
    """
    columns = np.arange(width)
    parts = [
        matrix[(_G + row)[:, None], (width * _T + column)[:, None] + columns]
        for row, column in places
    ]
    raw = np.ascontiguousarray(np.stack(parts, axis=1))
    registers: NDArray[Any] = raw.view(np.uint32).reshape(32, len(places))
    return registers


def _result(fragment: NDArray[Any]) -> Float64:
    """(32, 4) result registers -> (16, 8)."""
    matrix = np.empty((16, 8))
    for i in range(4):
        matrix[_G + 8 * (i // 2), 2 * _T + i % 2] = fragment[:, i]
    return matrix


def _from_result(matrix: NDArray[Any]) -> NDArray[Any]:
    """(16, 8) -> (32, 4) result registers."""
    return np.stack([matrix[_G + 8 * (i // 2), 2 * _T + i % 2] for i in range(4)], axis=1)


def _stored(values: NDArray[Any], dtype: str) -> tuple[NDArray[Any], Float64]:
    """Random values as 16-bit storage and as what they are."""
    if dtype == "half":
        half = values.astype(np.float16)
        return half, half.astype(np.float64)
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _mma_float(run: _Runner, rng: np.random.Generator, dtype: str) -> Finding:
    a, a_value = _stored(rng.standard_normal((16, 16)), dtype)
    b, b_value = _stored(rng.standard_normal((8, 16)), dtype)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    (out,) = run(
        f"mma_conformance_kernel<{dtype}>",
        (((32, 4), "<f4"),),
        _fragments(a, [(0, 0), (8, 0), (0, 8), (8, 8)], 2),
        _fragments(b, [(0, 0), (0, 8)], 2),
        _from_result(c),
    )
    expected = a_value @ b_value.T + c
    # Seventeen terms, each cut off at float32's last place of the largest sum.
    magnitude = np.abs(a_value) @ np.abs(b_value).T + np.abs(c)
    allowed = 17 * 2.0**-23 * float(magnitude.max())
    return Finding(f"mma<{dtype}>", float(np.abs(_result(out) - expected).max()), allowed)


def _mma_sparse(run: _Runner, rng: np.random.Generator, dtype: str, selector: int) -> Finding:
    kept, kept_value = _stored(rng.standard_normal((16, 16)), dtype)
    b, b_value = _stored(rng.standard_normal((8, 32)), dtype)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    pairs = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    chosen = pairs[rng.integers(0, 6, (16, 8))]  # (row, group of four, first and second kept)
    dense = np.zeros((16, 8, 4))
    np.put_along_axis(dense, chosen, kept_value.reshape(16, 8, 2), axis=2)
    bits = (chosen[:, :, 0] | chosen[:, :, 1] << 2).reshape(16, 2, 4) << (4 * np.arange(4))
    halves = bits.sum(axis=2).astype(np.uint32)  # (row, half of K)
    words = rng.integers(0, 1 << 32, 32, dtype=np.uint64).astype(np.uint32)
    for half in (0, 1):
        lanes = 4 * np.arange(8) + 2 * selector + half
        words[lanes] = halves[:8, half] | halves[8:, half] << np.uint32(16)
    (out,) = run(
        f"mma_sparse_conformance_kernel<{dtype}, {selector}>",
        (((32, 4), "<f4"),),
        _fragments(kept, [(0, 0), (8, 0), (0, 8), (8, 8)], 2),
        _fragments(b, [(0, 0), (0, 8), (0, 16), (0, 24)], 2),
        _from_result(c),
        words,
    )
    wide = dense.reshape(16, 32)
    # Seventeen terms, as in `_mma_float`.
    magnitude = np.abs(wide) @ np.abs(b_value).T + np.abs(c)
    error = float(np.abs(_result(out) - (wide @ b_value.T + c)).max())
    return Finding(
        f"mma_sparse<{dtype}, {selector}>", error, 17 * 2.0**-23 * float(magnitude.max())
    )


def _mma_int8(run: _Runner, rng: np.random.Generator) -> Finding:
    a = rng.integers(-128, 128, (16, 32)).astype(np.int8)
    b = rng.integers(-128, 128, (8, 32)).astype(np.int8)
    c = rng.integers(-(10**6), 10**6, (16, 8)).astype(np.int32)
    (out,) = run(
        "mma_conformance_kernel<int8>",
        (((32, 4), "<i4"),),
        _fragments(a, [(0, 0), (8, 0), (0, 16), (8, 16)], 4),
        _fragments(b, [(0, 0), (0, 16)], 4),
        _from_result(c),
    )
    expected = a.astype(np.int64) @ b.astype(np.int64).T + c
    return Finding("mma<int8>", float(np.abs(_result(out) - expected).max()), 0.0)


def _ldmatrix(run: _Runner, rng: np.random.Generator, transposed: bool) -> Finding:
    matrices = rng.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    (out,) = run(
        f"ldmatrix_conformance_kernel<{str(transposed).lower()}>",
        (((32, 4), "<u4"),),
        matrices.reshape(32, 8).view(np.uint32),
    )
    seen = matrices.transpose(0, 2, 1) if transposed else matrices
    low, high = seen[:, _G, 2 * _T].astype(np.uint32), seen[:, _G, 2 * _T + 1].astype(np.uint32)
    wrong = int((out != (low | high << 16).T).sum())
    return Finding("ldmatrix_x4_trans" if transposed else "ldmatrix_x4", float(wrong), 0.0)


def _copy(run: _Runner, rng: np.random.Generator) -> Finding:
    source = rng.integers(0, 1 << 32, (32, 4), dtype=np.uint64).astype(np.uint32)
    valid = rng.integers(0, 2, 32).astype(np.int32)
    (out,) = run("copy_conformance_kernel", (((64, 4), "<u4"),), source, valid)
    swapped = np.arange(32) ^ 1
    expected = np.concatenate(
        [
            np.where(valid[:, None] != 0, source, 0)[swapped],
            np.where(valid[:, None] == 0, source, 0)[swapped],
        ]
    )
    return Finding("copy16", float((out != expected).sum()), 0.0)


def _convert(run: _Runner, rng: np.random.Generator, dtype: str) -> Finding:
    values = (rng.standard_normal(64) * 10.0 ** rng.integers(-6, 5, 64)).astype(np.float32)
    # Ties to even, the smallest denormal, both zeros.
    values[:6] = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-24, 1 + 2.0**-8, 0.0, -0.0]
    packed, back = run(
        f"convert_conformance_kernel<{dtype}>", (((32, 2), "<u4"), ((64,), "<f4")), values
    )
    if dtype == "half":
        bits: NDArray[Any] = values.astype(np.float16).view(np.uint16).astype(np.uint32)
        wide = values.astype(np.float16).astype(np.float32)
    else:
        raw = values.view(np.uint32)
        bits = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
        wide = (bits << 16).view(np.float32)
    wrong = int((packed[:, 0] != (bits[::2] | bits[1::2] << 16)).sum())
    wrong += int((packed[:, 1] != bits[::2]).sum() + (back != wide).sum())
    return Finding(f"pack2<{dtype}>", float(wrong), 0.0)


def _warp(run: _Runner, rng: np.random.Generator) -> Iterator[Finding]:
    values = rng.uniform(-30, 30, 32).astype(np.float32)
    (out,) = run("warp_conformance_kernel", (((32, 3), "<f4"),), values)
    exact = values.astype(np.float64)
    allowed = 5 * 2.0**-24 * float(np.abs(exact).sum())
    yield Finding("warp_sum", float(np.abs(out[:, 0] - exact.sum()).max()), allowed)
    yield Finding("warp_max", float(np.abs(out[:, 1] - exact.max()).max()), 0.0)
    relative = np.abs(out[:, 2] / np.exp2(exact) - 1)
    yield Finding("exp2_approx", float(relative.max()), 2.0**-22 + 2.0**-24)
