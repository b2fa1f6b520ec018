from __future__ import annotations

import numpy as np
import pytest

from minibert.errors import DeviceError, InputError
from minibert.kernels.cuda import launch
from minibert.kernels.cuda.catalogue import ARCHITECTURES, catalogue, target_of
from minibert.kernels.cuda.launch import target_for

A100 = target_of(80)
T4 = target_of(75)


def test_four_rows_make_a_block() -> None:
    made = launch.layer_norm(A100, "float16", num_tokens=9, hidden_size=384)
    assert made.grid_size == (3, 1, 1)
    assert made.block_size == 128
    assert made.kernel == "layer_norm_kernel<half, 3>"


@pytest.mark.parametrize("hidden_size", [0, 2, 386, 2052])
def test_a_row_must_fit_a_warp(hidden_size: int) -> None:
    with pytest.raises(InputError, match=f"hidden_size must .* got {hidden_size}"):
        launch.layer_norm(A100, "float32", num_tokens=1, hidden_size=hidden_size)


@pytest.mark.parametrize("head_dim", [0, 4, 12, 136])
def test_unsupported_heads_are_refused(head_dim: int) -> None:
    with pytest.raises(InputError, match=f"head_dim must .* got {head_dim}"):
        launch.attention(
            A100, "float16", num_tiles=1, num_heads=2, head_dim=head_dim, row_stride=96
        )


@pytest.mark.parametrize(("head_dim", "width"), [(8, 16), (32, 32), (40, 48), (120, 128)])
def test_heads_are_widened_to_an_mma_step(head_dim: int, width: int) -> None:
    made = launch.attention(
        A100, "float16", num_tiles=3, num_heads=2, head_dim=head_dim, row_stride=96
    )
    assert f"<half, {width}, " in made.kernel
    assert made.grid_size == (3, 2, 1)


def test_bfloat16_is_refused_before_sm_80() -> None:
    with pytest.raises(DeviceError, match=r"bfloat16 needs compute capability 8.0, got 7.5"):
        launch.normalize(T4, "bfloat16", num_rows=1)


@pytest.mark.parametrize(
    ("num_rows", "tile"),
    [(1, "64, 16, 32, 8, 8"), (17, "64, 32, 32, 16, 6"), (4096, "128, 128, 64, 64, 3")],
)
def test_sparse_tiles_grow_with_the_tokens(num_rows: int, tile: str) -> None:
    made = launch.gemm_sparse(
        A100, "float16", None, num_rows=num_rows, out_features=3072, in_features=768
    )
    assert made.kernel == f"gemm_sparse_kernel<half, kNone, SparseTile<{tile}>>"


def test_old_devices_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"at least 7.5, got 7.0"):
        target_for(70, 80)


def test_unknown_words_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="activation must be one of None, gelu"):
        launch.gemm(A100, "float16", "swish", num_rows=1, out_features=8, in_features=8)
    with pytest.raises(InputError, match="mode must be one of cls, mean"):
        launch.pool(A100, "float16", "median", num_seqs=1, hidden_size=8)
    with pytest.raises(InputError, match="dtype must be one of float32"):
        launch.normalize(A100, "float64", num_rows=1)


@pytest.mark.parametrize(
    ("dtype", "quantized", "in_features"),
    [("float32", False, 6), ("float16", False, 12), ("float16", True, 24)],
)
def test_rows_must_be_whole_chunks(dtype: str, quantized: bool, in_features: int) -> None:
    with pytest.raises(InputError, match="in_features must be a multiple of"):
        launch.gemm(
            A100,
            dtype,
            None,
            num_rows=1,
            out_features=8,
            in_features=in_features,
            quantized=quantized,
        )


def test_grids_beyond_the_hardware_are_refused() -> None:
    with pytest.raises(InputError, match="num_rows must be at most"):
        launch.gemm(A100, "float16", None, num_rows=2**24, out_features=384, in_features=384)


@pytest.mark.parametrize("num_rows", [1, 16, 17, 32, 33, 64, 100, 128, 1000, 4096, 65536])
@pytest.mark.parametrize("out_features", [8, 384, 3072])
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_gemm_tiles_cover_the_output(capability: int, num_rows: int, out_features: int) -> None:
    target = target_of(capability)
    made = launch.gemm(
        target, "float16", None, num_rows=num_rows, out_features=out_features, in_features=768
    )
    block_m, block_n = map(int, made.kernel.split("Tile<")[1].split(",")[:2])
    assert (made.grid_size[0] - 1) * block_n < out_features <= made.grid_size[0] * block_n
    assert (made.grid_size[1] - 1) * block_m < num_rows <= made.grid_size[1] * block_m
    assert block_m < 2 * max(num_rows, 9)


def test_few_rows_take_narrow_tiles_and_many_take_wide_ones() -> None:
    def tile(num_rows: int) -> str:
        made = launch.gemm(
            A100, "float16", None, num_rows=num_rows, out_features=768, in_features=768
        )
        return made.kernel.split("Tile<")[1].split(",")[0]

    assert tile(8) == "16"
    assert tile(16384) == "128"


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_every_launch_fits_the_architecture(capability: int) -> None:
    target = target_of(capability)
    for made in catalogue(target):
        assert made.block_size <= 1024 and made.block_size % 32 == 0, made
        assert made.smem_bytes <= target.smem_bytes, made
        assert max(made.grid_size[1:]) <= 65535, made


def test_attention_tiles_name_each_tile_of_each_sequence() -> None:
    cu_seqlens = np.asarray([0, 1, 65, 194], np.int32)
    tiles = launch.attention_tiles(cu_seqlens, block_m=64, num_tiles=6)
    assert tiles.tolist() == [[0, 0], [1, 0], [2, 0], [2, 64], [2, 128], [-1, 0]]
    assert launch.attention_tiles(cu_seqlens, block_m=64).shape == (5, 2)
    assert launch.attention_tiles(np.zeros(1, np.int32), block_m=64).shape == (0, 2)


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_description_names_kernels_that_are_launched(capability: int) -> None:
    target = target_of(capability)
    sources = {made.source for made in catalogue(target)}
    for operation, (_, sentence) in launch.describe(target).items():
        named = [word.rstrip(":") for word in sentence.split() if ".cu" in word]
        assert set(named) <= sources, operation
    used, _ = launch.describe(target)["linear bfloat16"]
    assert used == (capability >= 80)
