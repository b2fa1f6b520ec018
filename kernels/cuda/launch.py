"""Which kernel runs, on which grid: pure functions of shapes and of the device.

Every function returns a `Launch` or refuses, naming the rule that the kernel's header states. None
of them touches a device, so all of them are tested without one.

Tile shapes may follow the number of tokens, because every tile shape of a kernel gives the same
bytes: one output is one chain of multiply-adds in the order of k, whatever the tile. The one kernel
that breaks this (`gemm_narrow` with float operands) is taken only where the caller allows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.errors import DeviceError, InputError

__all__ = [
    "ACTIVATIONS",
    "CTYPES",
    "NARROW_ROWS",
    "POOL_MODES",
    "Launch",
    "Target",
    "attention",
    "attention_block_m",
    "attention_tiles",
    "copy_columns",
    "describe",
    "embed_layer_norm",
    "gemm",
    "gemm_narrow",
    "layer_norm",
    "normalize",
    "pool",
    "quantize_rows",
    "softmax",
    "target_for",
]

CTYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}
"""Element type of a dtype in the kernels' text."""

ACTIVATIONS = {
    None: "kNone",
    "gelu": "kGelu",
    "gelu_tanh": "kGeluTanh",
    "relu": "kRelu",
    "silu": "kSilu",
    "tanh": "kTanh",
}
"""Activation of `Ops.linear` -> enumerator in activation.cuh."""

POOL_MODES = {
    "cls": "kCls",
    "mean": "kMean",
    "max": "kMax",
    "mean_sqrt_len_tokens": "kMeanSqrtLenTokens",
    "weightedmean": "kWeightedMean",
    "lasttoken": "kLastToken",
}
"""Mode of `Ops.pool` -> enumerator in pool.cu."""

NARROW_ROWS = 32
"""Most rows of `gemm_narrow`."""

MAX_HIDDEN_SIZE = 2048
"""Widest row that one warp holds in registers: 16 vectors of 4 in each of 32 lanes."""

MAX_HEAD_DIM = 128

_MAX_GRID_Y = 65535
_MAX_INDEX = 2**31 - 1

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


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile of gemm_tile.cuh; `chunks` of 16 bytes of K at a time."""

    block_m: int
    block_n: int
    chunks: int
    warp_m: int
    warp_n: int
    stages: int

    @property
    def block_size(self) -> int:
        return 32 * (self.block_m // self.warp_m) * (self.block_n // self.warp_n)

    @property
    def smem_bytes(self) -> int:
        return (self.block_m + self.block_n) * self.chunks * 16 * self.stages

    @property
    def text(self) -> str:
        values = (
            self.block_m,
            self.block_n,
            self.chunks,
            self.warp_m,
            self.warp_n,
            self.stages,
        )
        return f"Tile<{', '.join(map(str, values))}>"


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


def describe(target: Target) -> dict[str, str]:
    """Which kernel does what on a device, and why: operation -> sentence."""
    modern = target.compute_capability >= 80
    float_step, int8_step = ("m16n8k16", "m16n8k32") if modern else ("m16n8k8", "m8n8k16")
    stages = gemm_tiles(target)[0].stages
    copies = f"cp.async, {stages} stages" if modern else "copies through registers, 2 stages"
    absent = "not on this device: it needs compute capability 8.0"
    found = {
        "linear float32": "gemm_float32.cu: float32 multiply-adds, no TF32",
        "linear float16": f"gemm.cu: mma.sync {float_step}, {copies}",
        "linear bfloat16": f"gemm.cu: mma.sync {float_step}, {copies}" if modern else absent,
        "linear int8": f"gemm_int8.cu: mma.sync {int8_step}, {copies}; "
        f"gemm_narrow.cu up to {NARROW_ROWS} tokens",
        "attention float32": "attention_float32.cu: float32 multiply-adds",
        "attention 16 bits": f"attention.cu: mma.sync {float_step}, online softmax",
    }
    if target.compute_capability >= 90:
        found["beyond"] = "wgmma and tcgen05 are not used: the kernels are those of 8.0"
    return found


# ---- rows ------------------------------------------------------------------------------------
def _row_grid(num_rows: int) -> tuple[int, int, int]:
    """Four rows per block, one per warp."""
    return (_ceil_div(num_rows, 4), 1, 1)


def _row_vectors(hidden_size: int) -> int:
    if hidden_size % 4 or not 4 <= hidden_size <= MAX_HIDDEN_SIZE:
        raise InputError(
            f"hidden_size must be a multiple of 4 and at most {MAX_HIDDEN_SIZE}, "
            f"got {hidden_size}; use device='cpu'"
        )
    return _ceil_div(hidden_size, 128)


def embed_layer_norm(target: Target, dtype: str, *, num_tokens: int, hidden_size: int) -> Launch:
    """Launch of embed_layer_norm.cu."""
    kernel = f"embed_layer_norm_kernel<{_ctype(target, dtype)}, {_row_vectors(hidden_size)}>"
    return Launch("embed_layer_norm.cu", kernel, _row_grid(num_tokens), 128)


def layer_norm(target: Target, dtype: str, *, num_tokens: int, hidden_size: int) -> Launch:
    """Launch of layer_norm.cu."""
    kernel = f"layer_norm_kernel<{_ctype(target, dtype)}, {_row_vectors(hidden_size)}>"
    return Launch("layer_norm.cu", kernel, _row_grid(num_tokens), 128)


def quantize_rows(target: Target, dtype: str, *, num_tokens: int) -> Launch:
    """Launch of quantize_rows.cu."""
    kernel = f"quantize_rows_kernel<{_ctype(target, dtype)}>"
    return Launch("quantize_rows.cu", kernel, _row_grid(num_tokens), 128)


def softmax(target: Target, dtype: str, *, num_rows: int, num_columns: int) -> Launch:
    """Launch of softmax.cu."""
    if num_columns % 4:
        raise InputError(f"num_columns must be a multiple of 4, got {num_columns}")
    kernel = f"softmax_kernel<{_ctype(target, dtype)}>"
    return Launch("softmax.cu", kernel, _row_grid(num_rows), 128)


def pool(target: Target, dtype: str, mode: str, *, num_seqs: int, hidden_size: int) -> Launch:
    """Launch of pool.cu."""
    if mode not in POOL_MODES:
        raise InputError(f"mode must be one of {', '.join(POOL_MODES)}, got {mode!r}")
    if hidden_size % 4:
        raise InputError(f"hidden_size must be a multiple of 4, got {hidden_size}")
    kernel = f"pool_kernel<{_ctype(target, dtype)}, {POOL_MODES[mode]}>"
    return Launch("pool.cu", kernel, (num_seqs, _ceil_div(hidden_size, 128), 1), 256)


def normalize(target: Target, dtype: str, *, num_rows: int) -> Launch:
    """Launch of normalize.cu."""
    kernel = f"normalize_kernel<{_ctype(target, dtype)}>"
    return Launch("normalize.cu", kernel, _row_grid(num_rows), 128)


def copy_columns(
    target: Target, to: str, source: str, *, num_rows: int, written_columns: int
) -> Launch:
    """Launch of copy_columns.cu, from dtype `source` to dtype `to`."""
    count = num_rows * written_columns
    if count > _MAX_INDEX - 256:
        raise InputError(f"num_rows * written_columns must stay below 2^31 - 256, got {count}")
    kernel = f"copy_columns_kernel<{_ctype(target, to)}, {_ctype(target, source)}>"
    return Launch("copy_columns.cu", kernel, (_ceil_div(count, 256), 1, 1), 256)


# ---- linear layers ---------------------------------------------------------------------------
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
    ctype, function = _ctype(target, dtype), _activation(activation)
    multiple = 16 if quantized else (4 if dtype == "float32" else 8)
    if in_features % multiple:
        raise InputError(f"in_features must be a multiple of {multiple}, got {in_features}")
    if out_features % (1 if dtype == "float32" else 8):
        raise InputError(f"out_features must be a multiple of 8, got {out_features}")
    if quantized and in_features > 133144:
        raise InputError(f"in_features must be at most 133144 in int8, got {in_features}")
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
    ctype, function = _ctype(target, dtype), _activation(activation)
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
    return Launch("gemm_narrow.cu", kernel, (_ceil_div(out_features, 16), 1, 1), 256)


def gemm_tiles(target: Target) -> tuple[_Tile, ...]:
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
        _Tile(128, 128, 4, 64, 64, rings[0]),
        _Tile(64, 64, 8, 32, 32, rings[1]),
        _Tile(32, 32, 8, 16, 32, rings[2]),
        _Tile(16, 32, 8, 16, 32, rings[3]),
    )


def _choose_tile(target: Target, num_rows: int, out_features: int) -> _Tile:
    """The largest tile that still gives every multiprocessor a block and is not mostly empty."""
    tiles = gemm_tiles(target)
    useful = [tile for tile in tiles if tile.block_m < 2 * max(num_rows, 9)]
    for tile in useful:
        blocks = _ceil_div(num_rows, tile.block_m) * _ceil_div(out_features, tile.block_n)
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
        blocks = _ceil_div(num_rows, 16 * thread_m) * _ceil_div(out_features, 16 * thread_n)
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
    rows = _ceil_div(num_rows, block_m)
    if rows > _MAX_GRID_Y:
        raise InputError(f"num_rows must be at most {_MAX_GRID_Y * block_m}, got {num_rows}")
    return (_ceil_div(out_features, block_n), rows, 1)


# ---- attention -------------------------------------------------------------------------------
def attention_block_m(dtype: str) -> int:
    """Queries of one block: kBlockM of attention_float32.cu or attention.cu."""
    return 32 if dtype == "float32" else 64


def attention(
    target: Target, dtype: str, *, num_tiles: int, num_heads: int, head_dim: int, row_stride: int
) -> Launch:
    """Launch of attention.cu or attention_float32.cu.

    Raises:
        InputError: a head that the kernels do not support.
    """
    ctype = _ctype(target, dtype)
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise InputError(
            f"head_dim must be a multiple of 8 and at most {MAX_HEAD_DIM}, got {head_dim}; "
            "use device='cpu'"
        )
    if row_stride % 8:
        raise InputError(f"the row stride of qkv must be a multiple of 8, got {row_stride}")
    if num_heads > _MAX_GRID_Y:
        raise InputError(f"num_heads must be at most {_MAX_GRID_Y}, got {num_heads}")
    grid_size = (num_tiles, num_heads, 1)
    if dtype == "float32":
        width = _round_up(head_dim, 32)
        smem_bytes = 3 * 32 * width * 4 + 32 * 32 * 4
        kernel = f"attention_float32_kernel<{width}>"
        return Launch("attention_float32.cu", kernel, grid_size, 128, smem_bytes)
    width = _round_up(head_dim, 16)
    # Wide heads take fewer keys at a time: their results fill the registers.
    block_n = 64 if width <= 64 else 32
    smem_bytes = (64 + 2 * 2 * block_n) * width * 2
    kernel = f"attention_kernel<{ctype}, {width}, {block_n}>"
    return Launch("attention.cu", kernel, grid_size, 128, smem_bytes)


def attention_tiles(
    cu_seqlens: NDArray[np.int32], *, block_m: int, num_tiles: int | None = None
) -> NDArray[np.int32]:
    """Sequence and first query of every block of an attention grid.

    Args:
        cu_seqlens: (num_seqs + 1,) int32.
        block_m: queries of a block.
        num_tiles: rows of the result; those behind the real tiles are idle (-1, 0).

    Returns:
        (num_tiles, 2) int32.
    """
    per_seq = -(-np.diff(cu_seqlens) // block_m)
    count = int(per_seq.sum())
    tiles = np.zeros((count if num_tiles is None else num_tiles, 2), np.int32)
    tiles[:, 0] = -1
    ends = np.cumsum(per_seq)
    tiles[:count, 0] = np.repeat(np.arange(per_seq.size), per_seq)
    tiles[:count, 1] = (np.arange(count) - np.repeat(ends - per_seq, per_seq)) * block_m
    return tiles


# ---- shared ----------------------------------------------------------------------------------
def _ctype(target: Target, dtype: str) -> str:
    if dtype not in CTYPES:
        raise InputError(f"dtype must be one of {', '.join(CTYPES)}, got {dtype!r}")
    if dtype == "bfloat16" and target.compute_capability < 80:
        raise DeviceError(
            "bfloat16 needs compute capability 8.0, "
            f"got {target.compute_capability / 10:.1f}; use dtype='float16'"
        )
    return CTYPES[dtype]


def _activation(activation: str | None) -> str:
    if activation not in ACTIVATIONS:
        names = ", ".join(str(name) for name in ACTIVATIONS)
        raise InputError(f"activation must be one of {names}, got {activation!r}")
    return ACTIVATIONS[activation]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, b: int) -> int:
    return _ceil_div(a, b) * b
