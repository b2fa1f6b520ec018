"""gemm_sparse: 2:4 sparse weights on the sparse tensor cores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert.batch import pack
from minibert.errors import DeviceError, InputError
from minibert.kernels.cuda import launch
from minibert.kernels.cuda.emulated import EmulatedDevice
from minibert.kernels.cuda.launch import Launch, target_for
from minibert.kernels.cuda.sparse_layout import check_two_of_four, pack_two_of_four
from minibert.ops.cuda import CudaOps, cuda_ops
from tests.kernels.cuda.conftest import Bench, assert_as_good_as_plain, hard_values, widened
from tests.kernels.cuda.test_gemm import ACTIVATIONS, Case, plain

FLOATS = ("float16", "bfloat16")
# rows, out_features, in_features: one of each, off every tile and every 64, several tiles.
SHAPES = [(1, 8, 8), (3, 24, 40), (17, 72, 136), (33, 96, 384), (70, 200, 72), (2, 136, 1536)]


def sparsified(weight: NDArray[Any], seed: int = 0) -> NDArray[Any]:
    """Two random places of each four set to zero; some rows keep fewer."""
    rng = np.random.default_rng(seed)
    out_features, in_features = weight.shape
    order = rng.random((out_features, -(-in_features // 4), 4)).argsort(axis=2)
    mask = (order < 2).reshape(out_features, -1)[:, :in_features]
    mask[::5] &= rng.random(mask[::5].shape) < 0.7
    return np.where(mask, weight, np.zeros((), weight.dtype))


class SparseCase(Case):
    def __init__(self, shape: tuple[int, int, int], dtype: str, seed: int = 0) -> None:
        super().__init__(shape, dtype, seed)
        self.weight = sparsified(self.weight, seed)


def run(bench: Bench, case: Case, made: Launch, *, residual: bool = False) -> NDArray[Any]:
    sizes = case.sizes()
    kept, places = pack_two_of_four(case.weight)
    out = bench.empty((sizes["num_rows"], sizes["out_features"]), case.dtype)
    bench.launch(
        made,
        out,
        bench.put(case.hidden),
        bench.put(kept),
        bench.put(places),
        bench.put(case.bias),
        bench.put(case.residual) if residual else None,
        *sizes.values(),
    )
    return bench.get(out)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_gemm_matches_float64(bench: Bench, shape: tuple[int, int, int], dtype: str) -> None:
    case = SparseCase(shape, dtype)
    out = run(bench, case, launch.gemm_sparse(bench.target, dtype, None, **case.sizes()))
    assert_as_good_as_plain(out, plain(case, None, False), case.sum())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_epilogues_match_float64(bench: Bench, activation: str | None, dtype: str) -> None:
    case = SparseCase((5, 40, 72), dtype)
    made = launch.gemm_sparse(bench.target, dtype, activation, **case.sizes())
    out = run(bench, case, made, residual=True)
    ref = ACTIVATIONS[activation](case.sum()) + widened(case.residual)
    assert_as_good_as_plain(out, plain(case, activation, True), ref)


def on_every_tile(bench: Bench, case: Case) -> list[Launch]:
    sizes = case.sizes()
    made = launch.gemm_sparse(bench.target, case.dtype, None, **sizes)
    return [
        replace(
            made,
            kernel=f"{made.kernel.partition('SparseTile')[0]}{tile.text}>",
            grid_size=(
                -(-sizes["out_features"] // tile.block_m),
                -(-sizes["num_rows"] // tile.block_n),
                1,
            ),
            block_size=tile.block_size,
            smem_bytes=tile.smem_bytes,
        )
        for tile in launch.sparse_tiles(bench.target)
    ]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_sparse_tile_gives_the_same_bytes(bench: Bench, dtype: str) -> None:
    case = SparseCase((70, 136, 200), dtype)
    variants = on_every_tile(bench, case)
    assert len(variants) == 4
    outs = [run(bench, case, made, residual=True) for made in variants]
    for made, out in zip(variants, outs, strict=True):
        assert np.array_equal(out, outs[0]), made.kernel


def test_a_row_of_a_sparse_layer_does_not_depend_on_the_batch(bench: Bench) -> None:
    case = SparseCase((40, 64, 136), "float16")

    def out() -> NDArray[Any]:
        return run(bench, case, launch.gemm_sparse(bench.target, "float16", "gelu", **case.sizes()))

    whole = out()
    order = np.random.default_rng(0).permutation(40)
    case.hidden = case.hidden[order]
    assert np.array_equal(out(), whole[order])
    case.hidden = case.hidden[:1]
    assert np.array_equal(out()[0], whole[order[0]])


@pytest.mark.parametrize("index", range(4))
def test_sparse_tiles_have_no_bank_conflicts_and_read_whole_sectors(index: int) -> None:
    device = EmulatedDevice(80, counters=True)
    bench = Bench(device)
    tile = launch.sparse_tiles(bench.target)[index]
    case = SparseCase((tile.block_n, tile.block_m, 128), "float16")
    run(bench, case, on_every_tile(bench, case)[index], residual=True)
    ((made, counters),) = device.counted
    assert counters.bank_conflicts == 0, (made.kernel, counters.table())
    assert counters.load_efficiency >= 0.95, (made.kernel, counters.table())
    assert counters.store_efficiency >= 0.95, (made.kernel, counters.table())


def test_sparse_gemm_does_half_the_products_and_reads_fewer_bytes_than_dense() -> None:
    sizes = (64, 128, 256)
    case = SparseCase(sizes, "float16")
    device = EmulatedDevice(80, counters=True)
    bench = Bench(device)
    run(bench, case, on_every_tile(bench, case)[1])
    dense_tile = launch.gemm_tiles(bench.target)[1]
    assert (dense_tile.block_m, dense_tile.block_n) == (64, 64)
    dense = launch.gemm(bench.target, "float16", None, **case.sizes())
    bench.launch(
        replace(
            dense,
            kernel=f"{dense.kernel.partition('Tile')[0]}{dense_tile.text}>",
            grid_size=(2, 1, 1),
            block_size=dense_tile.block_size,
            smem_bytes=dense_tile.smem_bytes,
        ),
        bench.empty(sizes[:2], "float16"),
        bench.put(case.hidden),
        bench.put(case.weight),
        bench.put(case.bias),
        None,
        *case.sizes().values(),
    )
    (_, sparse), (_, full) = device.counted
    rows, out_features, in_features = sizes
    assert full.tensor_flops == 2 * rows * out_features * in_features
    assert sparse.tensor_flops * 2 == full.tensor_flops
    # Tokens are read by both blocks of 64 outputs; kept values and places are 9 / 16 of a weight.
    weight_bytes, hidden_bytes = 2 * out_features * in_features, 2 * 2 * rows * in_features
    assert full.load.global_bytes - sparse.load.global_bytes == weight_bytes * 7 // 16
    assert full.load.global_bytes >= weight_bytes + hidden_bytes


# ---- layout --------------------------------------------------------------------------------------
def test_places_are_where_the_isa_wants_them() -> None:
    weight = sparsified(hard_values(0, (24, 72)).astype(np.float16))
    kept, places = pack_two_of_four(weight)
    assert kept.shape == (24, 64) and places.shape == (8, 2, 32)
    dense = np.zeros((24, 128), np.float16)
    for row in range(24):
        for column in range(64):
            group = column // 2
            block, inside = divmod(row, 16)
            step, k = divmod(4 * group, 64)
            word = int(places[block, step, 4 * (inside % 8) + k // 16])
            half = word >> 16 if inside >= 8 else word & 0xFFFF
            nibble = half >> (k % 16) & 15
            assert nibble & 3 < nibble >> 2
            dense[row, 4 * group + (nibble >> 2 if column % 2 else nibble & 3)] = kept[row, column]
    assert np.array_equal(dense[:, :72], weight) and not dense[:, 72:].any()
    # Places of rows and columns that are not there are in order, too: the ISA asks for that.
    nibbles = places[..., None] >> (4 * np.arange(8, dtype=np.uint32)) & 15
    assert (nibbles & 3 < nibbles >> 2).all()


def test_weights_that_are_not_as_sparse_as_they_claim_are_named() -> None:
    weight = sparsified(np.ones((9, 30), np.float32))
    check_two_of_four(weight, name="layer.3.output")
    weight[7, 24:28] = 0, 1, 1, 1
    message = r"layer.3.output must keep at most 2 .* got 3 in output 7, inputs 24 to 27, and 0"
    with pytest.raises(DeviceError, match=message):
        check_two_of_four(weight, name="layer.3.output")
    for device, dtype in (
        ("emulator", "float16"),
        ("emulator", "int8"),
        ("emulator:75", "float32"),
    ):
        with pytest.raises(DeviceError, match=message):
            cuda_ops(device, dtype).prepare_linear(
                weight, None, name="layer.3.output", sparsity="2:4"
            )


def test_the_launch_refuses_what_the_kernel_does_not_do() -> None:
    sizes = {"num_rows": 4, "out_features": 8, "in_features": 8}
    with pytest.raises(InputError, match="gemm_sparse must have float16 or bfloat16"):
        launch.gemm_sparse(target_for(75, 40), "float16", None, **sizes)
    with pytest.raises(InputError, match="gemm_sparse must have float16 or bfloat16"):
        launch.gemm_sparse(target_for(80, 108), "float32", None, **sizes)
    with pytest.raises(InputError, match="in_features must be a multiple of 8, got 12"):
        launch.gemm_sparse(target_for(80, 108), "float16", None, **{**sizes, "in_features": 12})


# ---- the operation -------------------------------------------------------------------------------
class Watching(EmulatedDevice):
    launched: list[str]

    def launch(self, launch: Launch, *arguments: Any) -> None:
        self.launched.append(launch.source)
        super().launch(launch, *arguments)


def linear(capability: int, dtype: str, sparsity: str | None) -> tuple[NDArray[Any], set[str]]:
    """gelu(x W^T + b) + x for one sparse W of odd sizes, and the files that ran."""
    device = Watching(capability)
    device.launched = []
    ops = CudaOps(device, name="emulator", dtype=dtype, reuse_memory=False)
    table = ops.prepare_embedding(hard_values(1, (40, 56)))
    weight = sparsified(hard_values(2, (56, 56), 56**-0.5))
    layer = ops.prepare_linear(
        weight, hard_values(3, (56,)), name="layer.0.output", sparsity=sparsity
    )
    with ops.stream(alone=True) as stream:
        batch = stream.upload(pack([np.arange(n, dtype=np.int32) for n in (13, 7)]))
        hidden = stream.embed(batch, (table, None, None), None)
        out = stream.download(stream.linear(hidden, layer, activation="gelu", residual=hidden))
    return out, set(device.launched)


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        (80, "float16", "gemm_sparse.cu"),
        (90, "bfloat16", "gemm_sparse.cu"),
        (80, "float32", "gemm_float32.cu"),
        (75, "float16", "gemm.cu"),
        (80, "int8", "gemm_narrow.cu"),
    ],
)
def test_a_device_takes_the_sparse_kernel_where_it_has_one(
    capability: int, dtype: str, expected: str
) -> None:
    found, launched = linear(capability, dtype, "2:4")
    dense, launched_dense = linear(capability, dtype, None)
    assert expected in launched and "gemm_sparse.cu" not in launched_dense
    if expected == "gemm_sparse.cu":
        step = 2.0 ** (-10 if dtype == "float16" else -7)  # one rounding of a result may differ
        assert np.abs(found - dense).max() <= step * np.abs(dense).max()
    else:
        assert np.array_equal(found, dense)
