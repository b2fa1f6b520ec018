from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.compress.gate import leave_layers_alone
from minibert.compress.quantize import QuantizeOptions, migrate_layer, quantize_model
from minibert.compress.texts import split_texts
from minibert.errors import ConfigError, InputError, WeightsError
from minibert.loading import load_model
from minibert.weights.quantize import (
    migration_scales,
    output_error,
    quantize_activations,
    quantize_matrix,
)
from minibert.weights.statistics import LinearStatistics
from minibert.weights.stored import pack_int4, round_scale, unpack_int4
from minibert.weights.tensors import open_tensors
from tests.cpu_encoder import needs_kernels
from tests.texts import texts


def correlated(rows: int, columns: int) -> LinearStatistics:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((columns, columns)) * np.geomspace(1, 0.01, columns)
    found = LinearStatistics.empty(columns)
    found.add(rng.standard_normal((rows, columns)) @ mixing.T)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (40, 130)])
def test_int8_is_within_half_a_step_and_reaches_127(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = quantize_matrix(weight)
    assert np.abs(found.weight_q).max(axis=1).tolist() == [127] * shape[0]
    # Half a step, and a scale that was rounded to 16 bits.
    bound = found.weight_scale[:, None] * (0.5 + 127 * 2.0**-16)
    assert (np.abs(found.values - weight) <= bound).all()


@pytest.mark.parametrize("second_order", [False, True])
def test_quantizing_the_dequantized_matrix_finds_the_same_bits(second_order: bool) -> None:
    """What lets a kernel that quantises floats take stored int8 weights over exactly."""
    weight = (
        np.random.default_rng(2).standard_normal((64, 96)) * np.geomspace(1e-6, 1e6, 64)[:, None]
    )
    found = quantize_matrix(weight, gram=correlated(400, 96).gram if second_order else None)
    largest = np.abs(found.values).max(axis=1)
    assert (largest / np.float32(127)).tobytes() == found.weight_scale.tobytes()
    steps = np.float32(127) / largest
    assert np.array_equal(np.rint(found.values * steps[:, None]), found.weight_q)


def test_zero_rows_stay_zero() -> None:
    for bits in (8, 4):
        assert not quantize_matrix(np.zeros((3, 70)), bits=bits, gram=np.eye(70)).values.any()


@pytest.mark.parametrize("bits", [8, 4])
def test_second_order_rounding_lowers_the_error_of_the_outputs(bits: int) -> None:
    weight = np.random.default_rng(3).standard_normal((50, 80))
    seen = correlated(1000, 80)
    nearest = quantize_matrix(weight, bits=bits).values
    second = quantize_matrix(weight, bits=bits, gram=seen.gram).values
    assert output_error(weight, second, seen) < 0.7 * output_error(weight, nearest, seen)


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65])
def test_int4_round_trip(columns: int) -> None:
    values = np.random.default_rng(4).integers(-8, 8, (5, columns)).astype(np.int8)
    packed = pack_int4(values)
    assert packed.shape == (5, -(-columns // 2))
    assert np.array_equal(unpack_int4(packed, columns), values)


def test_scales_have_16_significant_bits() -> None:
    scale = np.random.default_rng(0).random(1000).astype(np.float32)
    rounded = round_scale(scale)
    assert np.abs(rounded / scale - 1).max() <= 2.0**-16
    assert (rounded.view(np.uint32) & 0xFF == 0).all()
    assert (
        (rounded * np.float32(127)).astype(np.float64) == rounded.astype(np.float64) * 127
    ).all()


def test_one_sided_activations_lose_less_with_a_zero_point() -> None:
    x = np.maximum(np.random.default_rng(0).standard_normal((20, 300)), -0.17)
    error = {
        asymmetric: np.abs(quantize_activations(x, asymmetric=asymmetric) - x).mean()
        for asymmetric in (True, False)
    }
    assert error[True] < 0.6 * error[False]
    assert (quantize_activations(np.zeros((2, 3))) == 0).all()


def test_a_static_threshold_saturates() -> None:
    found = quantize_activations(np.array([[-9.0, 0.0, 9.0]]), threshold=(-1.0, 2.0))
    assert found[0, 1] == 0.0
    assert found[0, 0] == pytest.approx(-1.0, abs=0.01)
    assert found[0, 2] == pytest.approx(2.0, abs=0.01)


def test_migration_is_exact(tiny: Any) -> None:
    """Powers of two move from the values into the weights: context / s, same products."""
    layer = load_model(tiny("bert")).weights.layers[0]
    rng = np.random.default_rng(0)
    absmax = rng.random(48) * np.where(np.arange(48) % 7 == 0, 50.0, 1.0)
    scales = migration_scales(absmax, layer.attention_output.weight)
    assert set(np.frexp(scales)[0]) == {0.5}  # powers of two
    assert scales.max() > 1.0 > scales.min()
    moved = migrate_layer(layer, scales)
    x = rng.standard_normal((5, 48)).astype(np.float32)
    values = x @ layer.qkv.weight[96:].T + layer.qkv.bias[96:]
    moved_values = x @ moved.qkv.weight[96:].T + moved.qkv.bias[96:]
    np.testing.assert_allclose(moved_values * scales, values, rtol=1e-5, atol=1e-5)
    assert np.array_equal(moved.qkv.weight[:96], layer.qkv.weight[:96])
    assert np.array_equal(moved.attention_output.weight / scales, layer.attention_output.weight)


# ---- whole models ------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "xlm-roberta"])
def test_a_quantized_model_loads_with_the_same_call(tiny: Any, tmp_path: Path, family: str) -> None:
    folder = tiny(family)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = QuantizeOptions(min_cosine=None)
    result = quantize_model(folder, tmp_path / "q", options=options, texts=texts())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert result.report.fidelity.mean_cosine > 0.99
    assert {layer.state for layer in result.layers} == {"int8"}
    tensors = open_tensors(tmp_path / "q")
    names = [name for name in tensors if name.endswith("weight_q")]
    assert all(tensors[name].dtype == "I8" for name in names)
    assert len(names) == 3 * 6 + (3 if family in ("bert", "electra", "xlm-roberta") else 2)
    with (
        Engine.from_pretrained(tmp_path / "q") as engine,
        Engine.from_pretrained(tmp_path / "q", dtype="float32") as dequantized,
    ):
        assert engine.fidelity(texts(9), against=dequantized).mean_cosine > 0.99
        assert engine.fidelity(texts(9), against=folder).mean_cosine > 0.99


@needs_kernels
def test_int8_files_run_in_int8_and_alone_equals_together(tiny: Any, tmp_path: Path) -> None:
    options = QuantizeOptions(min_cosine=None)
    quantize_model(tiny("bert"), tmp_path / "q", options=options, texts=texts())
    with Engine.from_pretrained(tmp_path / "q") as engine:
        assert ", int8" in engine.explain()
        together = engine.encode(texts(12))
        alone = np.stack([engine.encode(text) for text in texts(12)])
    assert together.tobytes() == alone.tobytes()
    # The kernels find the stored integers again: the same bytes as from the dequantised floats.
    code = (
        "import sys; from minibert import Engine; import numpy as np; "
        "np.save(sys.argv[2], Engine.from_pretrained(sys.argv[1]).encode(sys.argv[3:]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "q"), str(tmp_path / "rows.npy")]
    subprocess.run([*command, *texts(12)], check=True)
    assert np.load(tmp_path / "rows.npy").tobytes() == together.tobytes()


@needs_kernels
def test_the_gate_leaves_the_fewest_layers_in_float_and_names_them(
    tiny: Any, tmp_path: Path
) -> None:
    free = quantize_model(
        tiny("bert"),
        tmp_path / "a",
        options=QuantizeOptions(embedding_bits=32, min_cosine=None),
        texts=texts(),
    )
    reached = free.report.fidelity.mean_cosine
    options = QuantizeOptions(embedding_bits=32, min_cosine=1 - 0.6 * (1 - reached))
    gated = quantize_model(tiny("bert"), tmp_path / "b", options=options, texts=texts())
    left = [layer.name for layer in gated.layers if layer.state != "int8"]
    assert 0 < len(left) < 12
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["quantization_config"]["float_layers"] == left
    assert gated.report.fidelity.mean_cosine > reached


def test_int4_weights_are_an_eighth_and_load(tiny: Any, tmp_path: Path) -> None:
    options = QuantizeOptions(bits=4, embedding_bits=32, min_cosine=None)
    result = quantize_model(tiny("bert"), tmp_path / "q", options=options, texts=texts())
    entry = open_tensors(tmp_path / "q")["encoder.layer.0.intermediate.dense.weight_q"]
    assert (entry.dtype, entry.data.shape) == ("U8", (100, 24))
    assert result.report.fidelity.mean_cosine > 0.8
    with Engine.from_pretrained(tmp_path / "q") as engine:
        assert ", float32" in engine.explain()


def test_migrated_models_load(tiny: Any, tmp_path: Path) -> None:
    options = QuantizeOptions(migrate=True, min_cosine=None)
    result = quantize_model(tiny("bert"), tmp_path / "q", options=options, texts=texts())
    assert result.report.fidelity.mean_cosine > 0.99


# ---- what is refused ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"bits": 3}, "bits"),
        ({"embedding_bits": 16}, "embedding_bits"),
        ({"rounding": "up"}, "rounding"),
        ({"min_cosine": 1.5}, "min_cosine"),
    ],
)
def test_options_are_checked(keywords: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        QuantizeOptions(**keywords)


def test_bad_calls_are_refused_and_leave_nothing(tiny: Any, tmp_path: Path) -> None:
    folder = tiny("bert")
    (tmp_path / "taken").mkdir()
    for target, given, word in (
        (tmp_path / "few", texts(20), "32"),
        (tmp_path / "taken", texts(), "exist"),
        (folder, texts(), "outside"),
        (folder / "inside", texts(), "outside"),
        (tmp_path / "no" / "folder", texts(), "existing"),
    ):
        with pytest.raises(InputError, match=word):
            quantize_model(folder, target, texts=given)
    with pytest.raises(InputError, match="min_cosine must be at most"):
        options = QuantizeOptions(min_cosine=1.0)
        quantize_model(folder, tmp_path / "never", options=options, texts=texts())
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_quantized_models_are_not_quantized_again_and_damage_is_named(
    tiny: Any, tmp_path: Path
) -> None:
    good = tmp_path / "q"
    quantize_model(tiny("bert"), good, options=QuantizeOptions(min_cosine=None), texts=texts())
    with pytest.raises(InputError, match="quantized already"):
        quantize_model(good, tmp_path / "again", texts=texts())
    config = json.loads((good / "config.json").read_text())
    for change, kind, word in (
        ({"quantization_config": None}, WeightsError, "weight_q"),
        ({"quantization_config": {"quant_method": "gptq"}}, ConfigError, "quant_method"),
        (
            {"quantization_config": {"quant_method": "minibert", "weight_bits": 2}},
            ConfigError,
            "weight_bits",
        ),
    ):
        bad = tmp_path / "bad"
        shutil.copytree(good, bad)
        (bad / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(kind, match=word):
            load_model(bad)
        shutil.rmtree(bad)


def test_users_texts_are_divided_and_the_bundled_ones_differ() -> None:
    for found in (split_texts(None), split_texts(texts(40))):
        assert not set(found.calibration) & set(found.reporting)
    assert len(split_texts(texts(40)).reporting) == 10
    with pytest.raises(InputError, match="32"):
        split_texts(["same"] * 100)


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.97, 0.99, 0.9995])
def test_the_gate_takes_the_fewest_of_the_cheapest_kind(wanted: float) -> None:
    harm = {"a": 0.001, "b": 0.04, "c": 0.01, "d": 0.06}  # 0.111 together; a quarter at the first
    first: set[str] = set()
    second: set[str] = set()

    def cosine() -> float:
        kept = {n: h * (0.25 if n in first else 1.0) for n, h in harm.items() if n not in second}
        return 1.0 - sum(kept.values())

    assert leave_layers_alone(list(harm), [first, second], wanted, cosine, cosine, lambda _: None)
    worst = sorted(harm, key=lambda name: -harm[name])
    expected = {0.5: (0, 0), 0.9: (1, 0), 0.97: (3, 0), 0.99: (4, 2), 0.9995: (4, 3)}[wanted]
    assert (first, second) == (set(worst[: expected[0]]), set(worst[: expected[1]]))


def test_the_gate_says_when_nothing_is_enough() -> None:
    left: set[str] = set()
    assert not leave_layers_alone(["a"], [left], 0.9, lambda: 0.5, lambda: 0.5, lambda _: None)
