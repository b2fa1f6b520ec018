"""Linear layers of the block pattern: each 16 outputs read a part of the inputs, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.kernels.cpu import loader

# rows, out_features, in_features: off every tile, a last panel of one, several depth and row blocks
SHAPES = [(1, 1, 1), (1, 384, 384), (3, 5, 7), (7, 33, 100), (19, 1152, 384), (97, 49, 385)]
SHAPES += [(13, 17, 1536), (250, 40, 64)]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "relu", "silu", "tanh"]
FORMAT = "float32-block"


def has_format(isa: str) -> bool:
    return any(path.name == isa and FORMAT in path.formats for path in loader.all_paths())


def data(rows: int, out_features: int, in_features: int, share: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((rows, in_features))
    hidden[:, :: max(1, in_features // 3)] *= 20  # outlier columns, as transformers have
    weight = rng.standard_normal((out_features, in_features)) / np.sqrt(in_features)
    for first in range(0, out_features, 16):  # each panel leaves out other inputs, as many it likes
        left_out = rng.random(in_features) < share * rng.uniform(0.5, 1.5)
        weight[first : first + 16, left_out] = 0.0
    arrays = {
        "hidden": hidden,
        "weight": weight,
        "bias": rng.standard_normal(out_features),
        "residual": rng.standard_normal((rows, out_features)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(ops: Any, put: Any, d: Any, activation: str | None, *, alone: bool = False) -> Any:
    weights = ops.prepare_linear(d["weight"], d.get("bias"), name="test", sparsity="block")
    assert weights.format == FORMAT
    with ops.stream(alone=alone) as running:
        residual = put(running, d["residual"]) if "residual" in d else None
        out = running.linear(
            put(running, d["hidden"]), weights, activation=activation, residual=residual
        )
        return running.download(out)


def in_order(hidden: Any, weight: Any) -> Any:
    """hidden @ weight.T where every product is rounded, then added, one after the other."""
    terms = hidden[:, None, :] * weight[None, :, :]
    if terms.shape[2] == 0:
        return np.zeros(terms.shape[:2], terms.dtype)
    return np.add.accumulate(terms, axis=2)[:, :, -1]


def plain_way(isa: str) -> Any:
    """How float32 is multiplied for comparison: without a fused multiply-add where none is had."""
    return in_order if isa == "portable" else None


def products(
    d: Any, dtype: Any, activation: str | None, reference: Any, multiply: Any = None
) -> Any:
    """Each panel's product with the inputs that it keeps: zeros would make plain sums shorter."""
    c = {name: array.astype(dtype) for name, array in d.items()}
    panels, multiply = [], multiply or reference.multiply
    for first in range(0, len(c["weight"]), 16):
        weight = c["weight"][first : first + 16]
        kept = np.flatnonzero(weight.any(axis=0))
        panels.append(multiply(c["hidden"][:, kept], weight[:, kept]))
    out = reference.activate(np.concatenate(panels, axis=1) + c.get("bias", 0), activation)
    return out + c.get("residual", 0)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_block_linear_is_as_exact_as_float32(
    block_isa: str, make_ops: Any, reference: Any, shape: Any, share: float
) -> None:
    d = data(*shape, share)
    out = run(make_ops(isa=block_isa), reference.put, d, None)
    plain = products(d, np.float32, None, reference, plain_way(block_isa))
    reference.assert_close(out, plain, products(d, np.float64, None, reference))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("leave_out", [(), ("bias",), ("residual",), ("bias", "residual")], ids=str)
def test_block_epilogues_are_exact(
    block_isa: str,
    make_ops: Any,
    reference: Any,
    activation: str | None,
    leave_out: tuple[str, ...],
) -> None:
    d = {k: v for k, v in data(13, 37, 96, 0.5, seed=3).items() if k not in leave_out}
    out = run(make_ops(isa=block_isa), reference.put, d, activation)
    plain = products(d, np.float32, activation, reference, plain_way(block_isa))
    reference.assert_close(out, plain, products(d, np.float64, activation, reference))


def test_panels_and_depth_blocks_without_any_weight_give_the_bias(
    block_isa: str, make_ops: Any, reference: Any
) -> None:
    d = data(11, 64, 1536, 0.5, seed=4)
    d["weight"][16:32] = 0.0
    d["weight"][:, 384:768] = 0.0  # one depth block of every panel
    d["weight"][48:, :1152] = 0.0
    out = run(make_ops(isa=block_isa), reference.put, d, None)
    plain = products(d, np.float32, None, reference, plain_way(block_isa))
    reference.assert_close(out, plain, products(d, np.float64, None, reference))
    expected = d["residual"][:, 16:32] + d["bias"][16:32]
    assert np.array_equal(out[:, 16:32], expected)


def test_any_matrix_is_multiplied_exactly_whatever_it_is_called(
    block_isa: str, make_ops: Any, reference: Any
) -> None:
    """A wrong pattern costs speed: zeros of a single output do not remove an input."""
    d = data(9, 32, 100, 0.0, seed=5)
    d["weight"][np.random.default_rng(0).random(d["weight"].shape) < 0.7] = 0.0
    out = run(make_ops(isa=block_isa), reference.put, d, "gelu")
    plain = products(d, np.float32, "gelu", reference, plain_way(block_isa))
    reference.assert_close(out, plain, products(d, np.float64, "gelu", reference))


def test_a_row_has_the_same_bytes_in_any_batch(
    block_isa: str, make_ops: Any, reference: Any
) -> None:
    rng = np.random.default_rng(6)
    d = data(130, 70, 520, 0.5, seed=6)
    single, team = make_ops(isa=block_isa, threads=1), make_ops(isa=block_isa)
    expected = run(single, reference.put, d, "gelu")
    for size in (1, 2, 5, 12, 13, 31, 64, 129):
        rows = rng.permutation(130)[:size]
        part = {**d, "hidden": d["hidden"][rows], "residual": d["residual"][rows]}
        for ops, alone in ((single, False), (team, True)):
            out = run(ops, reference.put, part, "gelu", alone=alone)
            assert out.tobytes() == expected[rows].tobytes()


def test_what_is_left_out_takes_no_memory(block_isa: str, make_ops: Any) -> None:
    ops = make_ops(isa=block_isa)
    sizes = {}
    for kept in (1.0, 0.25):
        weight = np.zeros((128, 512), np.float32)
        weight[:, : int(512 * kept)] = 1.0
        linear = ops.prepare_linear(weight, None, name="test", sparsity="block")
        sizes[kept] = ops._native.linear_bytes(linear.handle)
    assert sizes[0.25] < 0.27 * sizes[1.0]


def test_other_formats_ignore_the_pattern(isa: str, make_ops: Any) -> None:
    weight = np.ones((16, 64), np.float32)
    for dtype in ("bfloat16", "float16", "int8"):
        ops = make_ops(dtype, isa=isa)
        for sparsity in ("2:4", "block"):
            assert (
                ops.prepare_linear(weight, None, name="x", sparsity=sparsity).format == ops.format
            )
    kept = make_ops("int8", isa=isa).prepare_linear(
        weight, None, name="x", dtype="float32", sparsity="block"
    )
    assert kept.format == FORMAT or not has_format(isa)


def test_inputs_beyond_an_index_are_refused(isa: str, make_ops: Any) -> None:
    ops = make_ops(isa=isa)
    if has_format(isa):
        wide = np.zeros((1, 65537), np.float32)
        with pytest.raises(Exception, match="x: in_features must be at most 65536"):
            ops.prepare_linear(wide, None, name="x", sparsity="block")
