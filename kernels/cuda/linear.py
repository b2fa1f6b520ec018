"""Which kernel computes a linear layer, and on which tiles.

Tile shapes may follow the number of tokens, because every tile shape of a kernel gives the same
bytes: one output is one chain of multiply-adds in the order of k, whatever the tile. The one kernel
that breaks this (`gemm_narrow` with float operands) is taken only where the caller allows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minibert.errors import InputError
from minibert.kernels.cuda.target import MAX_GRID_Y, Launch, Target, ceil_div, element_type

__all__ = [
    "ACTIVATIONS",
    "NARROW_ROWS",
    "SparseTile",
    "Tile",
    "gemm",
    "gemm_narrow",
    "gemm_sparse",
    "gemm_tiles",
    "has_sparse_gemm",
    "sparse_tiles",
]

ACTIVATIONS = {
    None: "kNone",
    "gelu": "kGelu",
    "gelu_tanh": "kGeluTanh",
    "relu": "kRelu",
    "silu": "kSilu",
    "tanh": "kTanh",
}
"""Activation of `Ops.linear` -> enumerator in activation.cuh."""

NARROW_ROWS = 32
"""Most rows of `gemm_narrow`."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of gemm_tile.cuh; `chunks` of 16 bytes of K at a time."""

    block_m: int
    block_n: int
    chunks: int
    warp_m: int
    warp_n: int
    stages: int

    @property
    def block_size(self) -> int:
        """Threads of a block."""
        return 32 * (self.block_m // self.warp_m) * (self.block_n // self.warp_n)

    @property
    def smem_bytes(self) -> int:
        """Shared memory of the ring."""
        return (self.block_m + self.block_n) * self.chunks * 16 * self.stages

    @property
    def text(self) -> str:
        """The type in the kernels' text."""
        values = (
            self.block_m,
            self.block_n,
            self.chunks,
            self.warp_m,
            self.warp_n,
            self.stages,
        )
        return f"Tile<{', '.join(map(str, values))}>"


@dataclass(frozen=True, slots=True)
class SparseTile:
    """A tile of gemm_sparse.cu: `block_m` outputs, `block_n` tokens, 64 inputs at a time."""

    block_m: int
    block_n: int
    warp_m: int
    warp_n: int
    stages: int

    @property
    def block_size(self) -> int:
        """Threads of a block."""
        return 32 * (self.block_m // self.warp_m) * (self.block_n // self.warp_n)

    @property
    def smem_bytes(self) -> int:
        """Shared memory of the ring: kept values, tokens, places."""
        return (self.block_m * 64 + self.block_n * 128 + self.block_m * 8) * self.stages

    @property
    def text(self) -> str:
        """The type in the kernel's text."""
        values = (self.block_m, self.block_n, self.warp_m, self.warp_n, self.stages)
        return f"SparseTile<{', '.join(map(str, values))}>"


def gemm(
    target: Target,
    dtype: str,
    activation: str | None,
    *,
    num_rows: int,
    out_features: int,
    in_features: int,
    quantized: bool = False,
) -> Launch:
    """Launch of gemm_float32.cu, gemm.cu or, where `quantized`, gemm_int8.cu.

    Args:
        target: the device.
        dtype: of the output, and of the operands unless `quantized`.
        activation: as in `Ops.linear`.
        num_rows: rows of hidden.
        out_features: columns of the output.
        in_features: columns of hidden and weight, as stored.
        quantized: operands are int8.

    Raises:
        InputError: a size that the kernel does not support.
    """
    ctype, function = element_type(target, dtype), _activation(activation)
    multiple = 16 if quantized else (4 if dtype == "float32" else 8)
    if in_features % multiple:
        raise InputError(f"in_features must be a multiple of {multiple}, got {in_features}")
    if out_features % (1 if dtype == "float32" else 8):
        raise InputError(f"out_features must be a multiple of 8, got {out_features}")
    if quantized and in_features > 66311:
        raise InputError(f"in_features must be at most 66311 in int8, got {in_features}")
    if dtype == "float32" and not quantized:
        return _gemm_float32(target, function, num_rows, out_features)
    tile = _choose_tile(target, num_rows, out_features)
    name = "gemm_int8" if quantized else "gemm"
    kernel = f"{name}_kernel<{ctype}, {function}, {tile.text}>"
    grid_size = _gemm_grid(num_rows, out_features, tile.block_m, tile.block_n)
    return Launch(f"{name}.cu", kernel, grid_size, tile.block_size, tile.smem_bytes)


def gemm_narrow(
    target: Target,
    dtype: str,
    activation: str | None,
    *,
    num_rows: int,
    out_features: int,
    in_features: int,
    quantized: bool = False,
) -> Launch:
    """Launch of gemm_narrow.cu, for at most `NARROW_ROWS` rows; arguments as of `gemm`."""
    ctype, function = element_type(target, dtype), _activation(activation)
    if dtype == "float32":
        raise InputError("dtype must be float16 or bfloat16 in gemm_narrow, got float32")
    if not 1 <= num_rows <= NARROW_ROWS:
        raise InputError(f"num_rows must be 1 to {NARROW_ROWS} in gemm_narrow, got {num_rows}")
    multiple = 16 if quantized else 8
    if in_features % multiple:
        raise InputError(f"in_features must be a multiple of {multiple}, got {in_features}")
    row_tiles = 1 if num_rows <= 16 else 2
    operand = "int8" if quantized else ctype
    kernel = f"gemm_narrow_kernel<{ctype}, {operand}, {function}, {row_tiles}>"
    return Launch("gemm_narrow.cu", kernel, (ceil_div(out_features, 16), 1, 1), 256)


def gemm_tiles(target: Target) -> tuple[Tile, ...]:
    """Tiles of gemm.cu and gemm_int8.cu for a device, largest first.

    The ring of the large tiles is as deep as leaves two blocks to a multiprocessor. That of the
    small ones is deeper, because they wait for weights: some 40 KB on the way per block. Before
    sm_80 copies are not asynchronous and a deep ring would bring nothing.
    """
    if target.compute_capability < 80:
        rings = (2, 2, 2, 2)
    elif target.smem_bytes < 131072:
        rings = (3, 3, 4, 6)
    else:
        rings = (4, 4, 6, 8)
    return (
        Tile(128, 128, 4, 64, 64, rings[0]),
        Tile(64, 64, 8, 32, 32, rings[1]),
        Tile(32, 32, 8, 16, 32, rings[2]),
        Tile(16, 32, 8, 16, 32, rings[3]),
    )


def gemm_sparse(
    target: Target,
    dtype: str,
    activation: str | None,
    *,
    num_rows: int,
    out_features: int,
    in_features: int,
) -> Launch:
    """Launch of gemm_sparse.cu, for weights laid out by `sparse_layout.py`; arguments as of `gemm`.

    Raises:
        InputError: a size, dtype or device that the kernel does not support.
    """
    ctype, function = element_type(target, dtype), _activation(activation)
    if not has_sparse_gemm(target, dtype):
        raise InputError(
            "gemm_sparse must have float16 or bfloat16 and compute capability 8.0, "
            f"got {dtype} and {target.compute_capability / 10:.1f}"
        )
    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if size % 8:
            raise InputError(f"{name} must be a multiple of 8, got {size}")
    tile = _choose_sparse_tile(target, num_rows, out_features)
    columns = ceil_div(num_rows, tile.block_n)
    if columns > MAX_GRID_Y:
        raise InputError(f"num_rows must be at most {MAX_GRID_Y * tile.block_n}, got {num_rows}")
    return Launch(
        "gemm_sparse.cu",
        f"gemm_sparse_kernel<{ctype}, {function}, {tile.text}>",
        (ceil_div(out_features, tile.block_m), columns, 1),
        tile.block_size,
        tile.smem_bytes,
    )


def has_sparse_gemm(target: Target, dtype: str) -> bool:
    """Whether a device has sparse tensor cores for a dtype."""
    return target.compute_capability >= 80 and dtype in ("float16", "bfloat16")


def sparse_tiles(target: Target) -> tuple[SparseTile, ...]:
    """Tiles of gemm_sparse.cu for a device, most tokens first; rings as of `gemm_tiles`."""
    rings = (3, 3, 4, 6) if target.smem_bytes < 131072 else (3, 4, 6, 8)
    return (
        SparseTile(128, 128, 64, 64, rings[0]),
        SparseTile(64, 64, 32, 32, rings[1]),
        SparseTile(64, 32, 32, 16, rings[2]),
        SparseTile(64, 16, 32, 8, rings[3]),
    )


def _choose_sparse_tile(target: Target, num_rows: int, out_features: int) -> SparseTile:
    """The largest tile that still gives every multiprocessor a block and is not mostly empty."""
    tiles = sparse_tiles(target)
    for tile in tiles:
        blocks = ceil_div(num_rows, tile.block_n) * ceil_div(out_features, tile.block_m)
        if tile.block_n < 2 * max(num_rows, 9) and blocks >= target.num_sms:
            return tile
    # Too little work for the device: the smallest tile that reads the weights once, or twice.
    return next(tile for tile in reversed(tiles) if tile.block_n >= min(num_rows, 32))


def _choose_tile(target: Target, num_rows: int, out_features: int) -> Tile:
    """The largest tile that still gives every multiprocessor a block and is not mostly empty."""
    tiles = gemm_tiles(target)
    useful = [tile for tile in tiles if tile.block_m < 2 * max(num_rows, 9)]
    for tile in useful:
        blocks = ceil_div(num_rows, tile.block_m) * ceil_div(out_features, tile.block_n)
        if blocks >= target.num_sms:
            return tile
    # Too little work for the device: the smallest tile that reads the weights once, or twice
    # where there are more than 32 rows.
    return next(tile for tile in reversed(tiles) if tile.block_m >= min(num_rows, 32))


def _gemm_float32(target: Target, function: str, num_rows: int, out_features: int) -> Launch:
    # 8 x 8 sums a thread would read shared memory less, and spill in the epilogue.
    shapes = ((8, 4, 3), (4, 4, 3), (2, 4, 4))
    thread_m, thread_n, stages = shapes[-1]
    for shape in shapes:
        thread_m, thread_n, stages = shape
        blocks = ceil_div(num_rows, 16 * thread_m) * ceil_div(out_features, 16 * thread_n)
        if blocks >= target.num_sms:
            break
    if target.compute_capability < 80:
        stages = 2
    block_m, block_n = 16 * thread_m, 16 * thread_n
    return Launch(
        "gemm_float32.cu",
        f"gemm_float32_kernel<{function}, {thread_m}, {thread_n}, {stages}>",
        _gemm_grid(num_rows, out_features, block_m, block_n),
        256,
        (block_m + block_n) * 64 * stages,
    )


def _gemm_grid(
    num_rows: int, out_features: int, block_m: int, block_n: int
) -> tuple[int, int, int]:
    rows = ceil_div(num_rows, block_m)
    if rows > MAX_GRID_Y:
        raise InputError(f"num_rows must be at most {MAX_GRID_Y * block_m}, got {num_rows}")
    return (ceil_div(out_features, block_n), rows, 1)


def _activation(activation: str | None) -> str:
    if activation not in ACTIVATIONS:
        names = ", ".join(str(name) for name in ACTIVATIONS)
        raise InputError(f"activation must be one of {names}, got {activation!r}")
    return ACTIVATIONS[activation]
