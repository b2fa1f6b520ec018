"""Linear layers in float32, bfloat16 and float16 against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

# rows, out_features, in_features: one row, off every tile, MiniLM's and BERT's sizes, several
# depth blocks, several row blocks.
SHAPES = [
    (1, 1, 1),
    (1, 384, 384),
    (3, 5, 7),
    (7, 33, 100),
    (19, 1152, 384),
    (13, 17, 1536),
    (97, 48, 385),
    (100, 35, 769),
    (250, 40, 64),
]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "relu", "silu", "tanh"]


def data(rows: int, out_features: int, in_features: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((rows, in_features))
    hidden[:, :: max(1, in_features // 3)] *= 20  # outlier columns, as transformers have
    arrays = {
        "hidden": hidden,
        "weight": rng.standard_normal((out_features, in_features)) / np.sqrt(in_features),
        "bias": rng.standard_normal(out_features),
        "residual": rng.standard_normal((rows, out_features)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(ops: Any, put: Any, d: dict[str, Any], activation: str | None, *, alone: bool) -> Any:
    weights = ops.prepare_linear(d["weight"], d.get("bias"), name="test")
    with ops.stream(alone=alone) as running:
        residual = put(running, d["residual"]) if "residual" in d else None
        out = running.linear(
            put(running, d["hidden"]), weights, activation=activation, residual=residual
        )
        return running.download(out)


def products(d: dict[str, Any], dtype: Any, activation: str | None, reference: Any) -> Any:
    c = {name: array.astype(dtype) for name, array in d.items()}
    out = reference.multiply(c["hidden"], c["weight"]) + c.get("bias", 0)
    return reference.activate(out, activation) + c.get("residual", 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_is_as_exact_as_float32(isa: str, make_ops: Any, reference: Any, shape: Any) -> None:
    d = data(*shape)
    out = run(make_ops(isa=isa), reference.put, d, None, alone=False)
    plain = products(d, np.float32, None, reference)
    reference.assert_close(out, plain, products(d, np.float64, None, reference))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("leave_out", [(), ("bias",), ("residual",), ("bias", "residual")], ids=str)
def test_epilogues_are_exact(
    isa: str, make_ops: Any, reference: Any, activation: str | None, leave_out: tuple[str, ...]
) -> None:
    d = {k: v for k, v in data(13, 37, 96, seed=3).items() if k not in leave_out}
    out = run(make_ops(isa=isa), reference.put, d, activation, alone=False)
    plain = products(d, np.float32, activation, reference)
    reference.assert_close(out, plain, products(d, np.float64, activation, reference))


def round_to_bfloat16(x: Any) -> Any:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def check_narrow(ops: Any, reference: Any, dtype: str, rounded: Any) -> None:
    """Weights of a narrow format are `rounded(weight)`, and nothing else is."""
    assert ops.format == dtype
    d = data(20, 50, 400, seed=4)
    d["weight"][0, :4] = [0.0, 6e-8, 1e-7, 1e-5]  # float16 subnormals
    out = run(ops, reference.put, d, None, alone=False)
    d["weight"] = rounded(d["weight"])
    plain = products(d, np.float32, None, reference)
    reference.assert_close(out, plain, products(d, np.float64, None, reference))


def test_bfloat16_weights_are_rounded_and_nothing_else(
    bfloat16_isa: str, make_ops: Any, reference: Any
) -> None:
    check_narrow(make_ops("bfloat16", isa=bfloat16_isa), reference, "bfloat16", round_to_bfloat16)


def test_float16_weights_are_rounded_and_nothing_else(
    float16_isa: str, make_ops: Any, reference: Any
) -> None:
    def rounded(weight: Any) -> Any:
        return weight.astype(np.float16).astype(np.float32)

    check_narrow(make_ops("float16", isa=float16_isa), reference, "float16", rounded)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("float32", "highest"), ("float32", "high"), ("float32", "medium")]
    + [(dtype, "highest") for dtype in ("bfloat16", "float16", "int8")],
)
def test_a_row_has_the_same_bytes_in_any_batch(
    isa: str, make_ops: Any, reference: Any, dtype: str, precision: str
) -> None:
    rng = np.random.default_rng(5)
    d = data(130, 70, 520, seed=5)
    single = make_ops(dtype, matmul_precision=precision, isa=isa, threads=1)
    expected = run(single, reference.put, d, "gelu", alone=False)
    team = make_ops(dtype, matmul_precision=precision, isa=isa)
    for size in (1, 2, 5, 12, 13, 31, 64, 129):
        rows = rng.permutation(130)[:size]
        part = {**d, "hidden": d["hidden"][rows], "residual": d["residual"][rows]}
        for ops, alone in ((single, False), (team, True)):
            out = run(ops, reference.put, part, "gelu", alone=alone)
            assert out.tobytes() == expected[rows].tobytes()


def test_nan_stays_in_its_row(isa: str, make_ops: Any, reference: Any) -> None:
    d = data(9, 40, 64, seed=6)
    clean = run(make_ops(isa=isa), reference.put, d, "gelu", alone=False)
    d["hidden"][4, 3] = np.nan
    out = run(make_ops(isa=isa), reference.put, d, "gelu", alone=False)
    assert np.isnan(out[4]).all()
    others = np.arange(9) != 4
    assert out[others].tobytes() == clean[others].tobytes()


def test_empty_input_gives_empty_output(isa: str, make_ops: Any, reference: Any) -> None:
    d = data(1, 8, 8)
    empty = {**d, "hidden": d["hidden"][:0], "residual": d["residual"][:0]}
    assert run(make_ops(isa=isa), reference.put, empty, None, alone=False).shape == (0, 8)
