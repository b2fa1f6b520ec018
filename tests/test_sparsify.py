"""`minibert.compress.sparsify` and its files: what is written, how it loads, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import Engine, model
from minibert.compress.prune import PruneTarget, prune_model
from minibert.compress.quantize import QuantizeOptions, quantize_model
from minibert.compress.sparsify import sparsify_model
from minibert.errors import ConfigError, InputError, WeightsError
from minibert.loading import load_model
from minibert.ops.reference import ReferenceOps
from minibert.weights.rewrite import Checkpoint
from minibert.weights.sparsity import SparsityOptions
from minibert.weights.tensors import open_tensors, to_float32
from tests.cpu_encoder import needs_kernels
from tests.texts import texts

QUERY = "encoder.layer.0.attention.self.query.weight"
WIDE = "encoder.layer.1.output.dense.weight"


def by_hand(folder: Path, name: str, rows: int, columns: int, panel: int) -> Any:
    """The stored form expanded value by value, as docs/compression.md describes it."""
    tensors = open_tensors(folder)
    assert tensors[f"{name}_shape"].data.tolist() == [rows, columns]
    kept, index = tensors[f"{name}_kept"].data, tensors[f"{name}_index"].data
    dense = np.zeros((rows, columns), kept.dtype)
    for row in range(rows):
        places = [c for c in range(columns) if index[row // panel, c // 8] >> (c % 8) & 1]
        for column, value in zip(places, kept[row], strict=True):
            dense[row, column] = value
    return dense


@pytest.mark.parametrize("pattern", ["2:4", "block", "unstructured"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sparse_model_is_smaller_and_loads_with_the_same_call(
    tiny: Any, tmp_path: Path, pattern: Any, dtype: str
) -> None:
    folder = tiny("bert", dtype=dtype)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = sparsify_model(folder, tmp_path / "s", SparsityOptions(pattern), texts=texts())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert result.report.changed_bytes < 0.75 * result.report.original_bytes
    assert 1.6 < result.report.flop_ratio <= 2.0
    assert len(result.layers) == 12
    panel = 16 if pattern == "block" else 1
    layers = load_model(tmp_path / "s").weights.layers
    for name, found, shape in (
        (QUERY, layers[0].qkv.weight[:48], (48, 48)),
        (WIDE, layers[1].output.weight, (48, 100)),
    ):
        stored = by_hand(tmp_path / "s", name, *shape, panel)
        kept = open_tensors(tmp_path / "s")[f"{name}_kept"]
        assert np.array_equal(to_float32(kept.__class__(kept.dtype, stored, kept.file)), found)
        assert np.count_nonzero(found) == shape[0] * shape[1] // 2
    with Engine.from_pretrained(tmp_path / "s") as engine:
        assert f"{pattern}: 50% of the layers' weights are zero" in engine.explain()
        fidelity = engine.fidelity(texts(9), against=folder)
        assert fidelity.mean_cosine > 0.5  # random weights have nothing to spare
        assert engine.encode("the cat sat").shape == (48,)


@pytest.mark.parametrize("family", ["distilbert", "electra", "xlm-roberta"])
def test_every_family_can_be_sparse(tiny: Any, tmp_path: Path, family: str) -> None:
    sparsify_model(tiny(family), tmp_path / "s", SparsityOptions("block", 0.25), texts=texts())
    for layer in load_model(tmp_path / "s").weights.layers:
        for part in (layer.qkv, layer.attention_output, layer.intermediate, layer.output):
            share = np.count_nonzero(part.weight) / part.weight.size
            assert share == pytest.approx(0.75, abs=0.01)


def test_layers_are_calibrated_behind_sparse_ones_and_regrowing_helps(
    tiny: Any, tmp_path: Path
) -> None:
    errors = {}
    for regrow in (0, 4):
        options = SparsityOptions("unstructured", 0.5, regrow=regrow)
        done = sparsify_model(tiny("bert"), tmp_path / f"s{regrow}", options, texts=texts())
        errors[regrow] = [layer.output_error for layer in done.layers]
    assert errors[4][0] < errors[0][0]
    assert np.mean(errors[4]) < np.mean(errors[0])


def test_a_sparse_model_can_be_quantized_and_stays_sparse(tiny: Any, tmp_path: Path) -> None:
    sparsify_model(tiny("bert"), tmp_path / "s", SparsityOptions("2:4"), texts=texts())
    options = QuantizeOptions(min_cosine=None)
    result = quantize_model(tmp_path / "s", tmp_path / "q", options=options, texts=texts())
    assert result.report.fidelity.mean_cosine > 0.99
    assert result.report.changed_bytes < 0.5 * result.report.original_bytes
    sparse = load_model(tmp_path / "s").weights.layers
    both = load_model(tmp_path / "q").weights.layers
    for before, after in zip(sparse, both, strict=True):
        for part in ("qkv", "attention_output", "intermediate", "output"):
            old, new = getattr(before, part).weight, getattr(after, part).weight
            assert not new[old == 0].any()
            assert np.abs(new - old).max() < 0.05 * np.abs(old).max()
            assert getattr(after, part).quantized
    tensors = open_tensors(tmp_path / "q")
    assert tensors[f"{QUERY}_q_kept"].dtype == "I8"
    assert tensors[f"{QUERY}_q_kept"].data.shape == (48, 24)
    assert tensors[f"{QUERY}_scale"].data.shape == (48,)
    with Engine.from_pretrained(tmp_path / "q") as engine:
        together = engine.encode(texts(12))
        assert np.stack([engine.encode(text) for text in texts(12)]).tobytes() == together.tobytes()


def test_reading_and_writing_a_sparse_checkpoint_gives_its_bytes(tiny: Any, tmp_path: Path) -> None:
    sparsify_model(tiny("bert"), tmp_path / "s", SparsityOptions("block", 0.3), texts=texts())
    loaded = load_model(tmp_path / "s")
    checkpoint = Checkpoint.open(tmp_path / "s", loaded.config)
    checkpoint.changed = True
    (tmp_path / "again").mkdir()
    checkpoint.save(tmp_path / "again")
    first, second = (tmp_path / name / "model.safetensors" for name in ("s", "again"))
    assert first.read_bytes() == second.read_bytes()


# ---- how it runs -------------------------------------------------------------------------------
class ToldOps(ReferenceOps):
    """NumPy ops that remember what they were told of each layer's zeros."""

    def __init__(self) -> None:
        super().__init__("float32")
        self.told: dict[str, str | None] = {}

    def prepare_linear(self, weight: Any, bias: Any, *, name: str, **known: Any) -> Any:
        self.told[name] = known.get("sparsity")
        return super().prepare_linear(weight, bias, name=name, **known)


@pytest.mark.parametrize(
    ("pattern", "heads", "multiple", "told", "told_after_heads"),
    [
        ("2:4", 4, 1, "2:4", "2:4"),
        ("2:4", 4, 8, "2:4", "2:4"),  # heads of 12 become 16: groups of four stay whole
        ("2:4", 8, 8, "2:4", None),  # heads of 6 become 8: groups of four are torn
        ("block", 8, 8, "block", "block"),
        ("unstructured", 4, 8, None, None),
    ],
)
def test_the_ops_are_told_the_pattern_where_it_holds(
    tiny: Any,
    tmp_path: Path,
    pattern: Any,
    heads: int,
    multiple: int,
    told: str | None,
    told_after_heads: str | None,
) -> None:
    folder = tiny("electra", num_attention_heads=heads)  # its embeddings are projected
    sparsify_model(folder, tmp_path / "s", SparsityOptions(pattern), texts=texts())
    loaded = load_model(tmp_path / "s")
    ops = ToldOps()
    ops.head_dim_multiple = multiple
    model.prepare(ops, loaded.weights, loaded.config)
    assert ops.told.pop("projection") is None
    for name, found in ops.told.items():
        assert found == (told_after_heads if name.endswith("attention_output") else told), name


def test_a_dense_model_says_nothing_of_zeros(tiny: Any) -> None:
    loaded, ops = load_model(tiny("bert")), ToldOps()
    model.prepare(ops, loaded.weights, loaded.config)
    assert set(ops.told.values()) == {None}


@needs_kernels
@pytest.mark.parametrize("pattern", ["2:4", "block"])
def test_kernels_give_what_float64_gives_of_the_sparse_model(
    tiny: Any, tmp_path: Path, pattern: Any
) -> None:
    sparsify_model(tiny("bert"), tmp_path / "s", SparsityOptions(pattern), texts=texts())
    rows = {}
    for device, dtype in (("cpu", "float32"), ("numpy", "float32"), ("numpy", "float64")):
        with Engine.from_pretrained(tmp_path / "s", device=device, dtype=dtype) as engine:
            rows[device, dtype] = engine.encode(texts(12)).astype(np.float64)
    exact = rows["numpy", "float64"]
    allowed = 2 * np.abs(rows["numpy", "float32"] - exact).max() + 2.0**-24 * np.abs(exact).max()
    assert np.abs(rows["cpu", "float32"] - exact).max() <= allowed


@needs_kernels
def test_a_text_has_the_same_bytes_alone_and_in_a_batch(tiny: Any, tmp_path: Path) -> None:
    sparsify_model(tiny("bert"), tmp_path / "s", SparsityOptions("block"), texts=texts())
    with Engine.from_pretrained(tmp_path / "s", device="cpu") as engine:
        together = engine.encode(texts(40))
        alone = np.stack([engine.encode(text) for text in texts(40)])
    assert together.tobytes() == alone.tobytes()


# ---- what is refused ---------------------------------------------------------------------------
def test_bad_calls_are_refused_and_leave_nothing(tiny: Any, tmp_path: Path) -> None:
    folder = tiny("bert")
    (tmp_path / "taken").mkdir()
    for target, given, word in (
        (tmp_path / "few", texts(20), "32"),
        (tmp_path / "taken", texts(), "exist"),
        (folder, texts(), "outside"),
    ):
        with pytest.raises(InputError, match=word):
            sparsify_model(folder, target, SparsityOptions("block"), texts=given)
    odd = tiny("bert", intermediate_size=102)
    with pytest.raises(InputError, match=r"layer\.0\.output must have a multiple of 4"):
        sparsify_model(odd, tmp_path / "odd", SparsityOptions("2:4"), texts=texts())
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("pattern", ["block", "unstructured"])
def test_a_fraction_of_no_weight_is_refused_and_one_that_is_enough_is_named(
    tiny: Any, tmp_path: Path, pattern: Any
) -> None:
    folder, target = tiny("bert"), tmp_path / "s"
    message = r"one of the 48 inputs of layer\.0\.qkv, got 0\.01, which is none; 0\.0209 is one"
    with pytest.raises(InputError, match=message):
        sparsify_model(folder, target, SparsityOptions(pattern, 0.01), texts=texts())
    assert not list(tmp_path.iterdir())
    sparsify_model(folder, target, SparsityOptions(pattern, 0.0209), texts=texts())
    layer = load_model(target).weights.layers[0]
    assert np.count_nonzero(layer.qkv.weight) == 3 * 48 * 47


def test_a_run_that_fails_late_leaves_nothing(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minibert.compress import sparsify

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sparsify, "report", fails)
    with pytest.raises(KeyboardInterrupt):
        sparsify_model(tiny("bert"), tmp_path / "s", SparsityOptions("block"), texts=texts())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_combined_is_named(tiny: Any, tmp_path: Path) -> None:
    sparse, quantized = tmp_path / "s", tmp_path / "q"
    options = SparsityOptions("block")
    sparsify_model(tiny("bert"), sparse, options, texts=texts())
    quantize_model(tiny("bert"), quantized, options=QuantizeOptions(min_cosine=None), texts=texts())
    new = tmp_path / "new"
    with pytest.raises(InputError, match="sparse already"):
        sparsify_model(sparse, new, options, texts=texts())
    with pytest.raises(InputError, match="sparsify its original, then quantize"):
        sparsify_model(quantized, new, options, texts=texts())
    with pytest.raises(InputError, match="prune or distil its original, then sparsify"):
        prune_model(sparse, new, PruneTarget(flops=0.5), texts=texts())
    with pytest.raises(InputError, match="bits must be 8 for a sparse model"):
        quantize_model(sparse, new, options=QuantizeOptions(bits=4), texts=texts())
    assert not new.exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (None, "sparsity_config in config.json, which has none"),
        ({"pattern": "block", "fraction": 0.5}, "sparse_method 'minibert'"),
        ({"sparse_method": "minibert", "pattern": "1:2", "fraction": 0.5}, "pattern, one of"),
        ({"sparse_method": "minibert", "pattern": "block", "fraction": "half"}, "a fraction"),
        ({"sparse_method": "minibert", "pattern": "block", "fraction": 1.5}, "below 1"),
        ({"sparse_method": "minibert", "pattern": "2:4", "fraction": 0.25}, "must be 0.5"),
        ({"sparse_method": "minibert", "pattern": "block", "fraction": 0.25}, "_kept must be"),
        ({"sparse_method": "minibert", "pattern": "2:4", "fraction": 0.5}, "_index must be U8"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_file_is_refused(
    tiny: Any, tmp_path: Path, change: Any, word: str
) -> None:
    sparsify_model(tiny("bert"), tmp_path / "s", SparsityOptions("block"), texts=texts())
    path = tmp_path / "s" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sparsity_config": change}))
    with pytest.raises((ConfigError, WeightsError), match=word):
        load_model(tmp_path / "s")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda t: t.pop(f"{QUERY}_kept"), "missing: .*_kept"),
        (lambda t: t.update({QUERY: np.zeros((48, 48), np.float32)}), "without"),
        (lambda t: t.update({f"{QUERY}_shape": np.array([48, 0], np.int32)}), "rows and columns"),
        (lambda t: t.update({f"{QUERY}_shape": np.array([48, 44], np.int32)}), "_kept must be"),
        (lambda t: t[f"{QUERY}_index"].__ixor__(1), "two of each four"),
        (lambda t: t[f"{WIDE}_index"].__ior__(128), "two of each four"),  # beyond the last column
        (lambda t: t[f"{QUERY}_kept"].fill(np.nan), "NaN"),
        (
            lambda t: (
                [t.pop(f"{WIDE}{part}") for part in ("_kept", "_index", "_shape")]
                and t.update({WIDE: np.zeros((48, 100), np.float32)})
            ),
            "it is dense",
        ),
    ],
    ids=range(8),
)
def test_a_damaged_file_is_refused(tiny: Any, tmp_path: Path, damage: Any, word: str) -> None:
    good = tmp_path / "s"
    sparsify_model(tiny("bert"), good, SparsityOptions("2:4"), texts=texts())
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    tensors = {name: array.copy() for name, array in load_file(bad / "model.safetensors").items()}
    damage(tensors)
    (bad / "model.safetensors").unlink()
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    load_model(good)
    with pytest.raises(WeightsError, match=word):
        load_model(bad)
