"""Bank conflicts and use of sectors, as the emulator counts them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minibert.batch import pack
from minibert.kernels.cuda import launch
from minibert.kernels.cuda.emulated import EmulatedDevice
from minibert.ops.cuda import DTYPES, CudaOps
from tests.kernels.cuda.conftest import Bench, hard_values, stored

HIDDEN, INTERMEDIATE, HEADS = 128, 256, 4
Counted = list[tuple[launch.Launch, Any]]


def layer(dtype: str, capability: int, seqlens: tuple[int, ...], **options: Any) -> Counted:
    """Counters of every launch of one encoder layer and its pooling."""
    device = EmulatedDevice(capability, counters=True)
    ops = CudaOps(device, name="emulator", dtype=dtype, reuse_memory=False, **options)

    def linear(out_features: int, in_features: int) -> Any:
        weight = hard_values(1, (out_features, in_features), in_features**-0.5)
        return ops.prepare_linear(weight, hard_values(2, (out_features,)), name="layer.0.linear")

    table = ops.prepare_embedding(hard_values(3, (60, HIDDEN)))
    norm = ops.prepare_layer_norm(np.ones(HIDDEN, np.float32), None, eps=1e-12)
    qkv, output = linear(3 * HIDDEN, HIDDEN), linear(HIDDEN, HIDDEN)
    wide, narrow = linear(INTERMEDIATE, HIDDEN), linear(HIDDEN, INTERMEDIATE)
    texts = [np.arange(n, dtype=np.int32) % 60 for n in seqlens]
    with ops.stream(alone=True) as stream:
        batch = stream.upload(pack(texts))
        hidden = stream.embed(batch, (table, table, None), norm)
        context = stream.attention(
            stream.linear(hidden, qkv),
            batch,
            num_heads=HEADS,
            head_dim=HIDDEN // HEADS,
            softmax_scale=0.2,
        )
        hidden = stream.layer_norm(stream.linear(context, output, residual=hidden), norm)
        up = stream.linear(hidden, wide, activation="gelu")
        down = stream.linear(up, narrow, residual=hidden)
        stream.download(stream.normalize(stream.pool(down, batch, "mean")))
    return device.counted


def check(counted: Counted) -> None:
    for made, counters in counted:
        assert counters.bank_conflicts == 0, (made.kernel, counters.table())
        assert counters.load_efficiency >= 0.95, (made.kernel, counters.table())
        assert counters.store_efficiency >= 0.95, (made.kernel, counters.table())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_has_no_bank_conflicts_and_reads_whole_sectors(dtype: str) -> None:
    check(layer(dtype, 80, (40, 24)))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_narrow_gemm_has_no_bank_conflicts_and_reads_whole_sectors(dtype: str) -> None:
    counted = layer(dtype, 80, (20,), batch_invariant=False)
    assert any(made.source == "gemm_narrow.cu" for made, _ in counted)
    check(counted)


def test_sm_75_has_no_bank_conflicts_and_reads_whole_sectors() -> None:
    check(layer("float16", 75, (17,)))


@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 96, 112, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_attention_has_no_bank_conflicts_at_any_head_dim(dtype: str, head_dim: int) -> None:
    device = EmulatedDevice(80, counters=True)
    bench = Bench(device)
    seqlen = 70
    tiles = launch.attention_tiles(
        np.asarray([0, seqlen], np.int32), block_m=launch.attention_block_m(dtype)
    )
    bench.launch(
        launch.attention(
            bench.target,
            dtype,
            num_tiles=len(tiles),
            num_heads=1,
            head_dim=head_dim,
            row_stride=3 * head_dim,
        ),
        bench.empty((seqlen, head_dim), dtype),
        bench.put(stored(hard_values(1, (seqlen, 3 * head_dim)), dtype)),
        bench.put(np.asarray([0, seqlen], np.int32)),
        bench.put(tiles),
        1,
        head_dim,
        3 * head_dim,
        0.1,
    )
    check(device.counted)


@pytest.mark.parametrize("index", range(4))
def test_every_gemm_tile_has_no_bank_conflicts(index: int) -> None:
    device = EmulatedDevice(80, counters=True)
    bench = Bench(device)
    tile = launch.gemm_tiles(bench.target)[index]
    rows, out_features, in_features = tile.block_m, tile.block_n, 128
    made = launch.gemm(
        bench.target,
        "float16",
        None,
        num_rows=rows,
        out_features=out_features,
        in_features=in_features,
    )
    bench.launch(
        replace(
            made,
            kernel=re.sub(r"Tile<[^>]*>", tile.text, made.kernel),
            grid_size=(1, 1, 1),
            block_size=tile.block_size,
            smem_bytes=tile.smem_bytes,
        ),
        bench.empty((rows, out_features), "float16"),
        bench.put(stored(hard_values(1, (rows, in_features)), "float16")),
        bench.put(stored(hard_values(2, (out_features, in_features)), "float16")),
        bench.put(np.zeros(out_features, np.float32)),
        None,
        rows,
        out_features,
        in_features,
    )
    check(device.counted)


def test_copied_columns_are_read_in_whole_sectors() -> None:
    device = EmulatedDevice(80, counters=True)
    bench = Bench(device)
    bench.launch(
        launch.copy_columns(bench.target, "float16", "float32", num_rows=8, written_columns=384),
        bench.empty((8, 384), "float16"),
        bench.put(hard_values(1, (8, 384))),
        8,
        384,
        384,
        384,
        384,
    )
    check(device.counted)
