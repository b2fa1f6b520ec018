"""Loading beside the tokenizer: the same engine, the same refusals, and nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from minibert import Engine, engine
from minibert.errors import TokenizerError, WeightsError
from minibert.kernels.cpu import background
from minibert.loading import load_model
from tests.checkpoints import edit_tensors
from tests.cpu_encoder import needs_kernels
from tests.threads import needs_tasks, new_threads, threads

TEXTS = ["a cat sat on the mat", "bread stays soft in a paper bag", "ice"]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Everything is done by the calling thread, until `undo`."""
    monkeypatch.setattr(engine, "start_background", nullcontext)
    yield monkeypatch


def vectors(folder: Path, **options: Any) -> Any:
    with Engine.from_pretrained(folder, **options) as loaded:
        return loaded.encode(TEXTS)


def spoil(folder: Path, *names: str) -> list[str]:
    """Put a NaN into the first tensor whose name ends so; return the full names."""
    tensors = load_file(folder / "model.safetensors")
    found = [next(name for name in tensors if name.endswith(end)) for end in names]
    for name in found:
        values = tensors[name].copy()
        values.flat[values.size // 2] = np.nan
        edit_tensors(folder, **{name: values})
    return found


@pytest.mark.parametrize("device", ["cpu", "numpy"])
@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
def test_an_engine_has_the_same_bytes(
    tiny: Any,
    tmp_path: Path,
    family: str,
    stored: str,
    device: str,
    at_once: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(tiny(family), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    if stored != "float32":
        edit_tensors(folder, **{name: array.astype(stored) for name, array in tensors.items()})
    expected = vectors(folder, device=device)
    at_once.undo()
    assert np.array_equal(vectors(folder, device=device), expected)
    at_once.setattr(background, "_MOST_COPIED_BYTES", 20_000)
    assert np.array_equal(vectors(folder, device=device), expected)


@needs_kernels
@pytest.mark.parametrize("heads", [4, 8])
def test_heads_filled_up_with_zeros_see_joined_values(
    tiny: Any, heads: int, at_once: pytest.MonkeyPatch
) -> None:
    folder = tiny("bert", num_attention_heads=heads)  # of 12 and of 6 columns: neither is 8's
    expected = vectors(folder, device="cpu")
    at_once.undo()
    assert np.array_equal(vectors(folder, device="cpu"), expected)


@pytest.mark.parametrize(
    "names",
    [
        ["word_embeddings.weight"],
        ["embeddings.LayerNorm.weight"],
        ["layer.1.attention.self.query.bias"],
        ["layer.2.output.dense.weight"],
        ["layer.1.output.dense.weight", "layer.0.attention.self.value.weight"],
        ["layer.0.attention.self.query.weight", "position_embeddings.weight"],
    ],
)
def test_weights_that_are_not_finite_are_refused_in_the_same_order(
    tiny: Any, tmp_path: Path, names: list[str], at_once: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "bad"))
    full = spoil(folder, *names)
    with pytest.raises(WeightsError) as expected:
        Engine.from_pretrained(folder)
    at_once.undo()
    with pytest.raises(WeightsError) as found:
        Engine.from_pretrained(folder)
    assert str(found.value) == str(expected.value)
    assert f"{full[-1]} must be finite, got 1 NaN" in str(found.value)


@needs_tasks
def test_a_refusal_leaves_no_thread(tiny: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "bad"))
    vectors(folder)
    before = threads()
    good = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(good[:200])
    with pytest.raises(TokenizerError, match="must be a sound tokenizer file"):
        Engine.from_pretrained(folder)
    assert not new_threads(before)
    (folder / "tokenizer.json").write_bytes(good)
    spoil(folder, "word_embeddings.weight")
    with pytest.raises(WeightsError, match="must be finite"):
        Engine.from_pretrained(folder)
    assert not new_threads(before)


@needs_tasks
def test_a_loaded_engine_has_no_thread_yet(tiny: Any) -> None:
    folder = tiny("bert")
    vectors(folder)
    before = threads()
    with Engine.from_pretrained(folder):
        assert not new_threads(before)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_the_file_that_limits_the_length_is_named(tiny: Any, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "model"))
    (folder / name).write_text('{"max_seq_length": 32}')
    loaded = load_model(folder)
    assert (loaded.max_length, loaded.origins["max_length"]) == (32, f"max_seq_length of {name}")


def test_the_tokenizer_is_refused_before_weights_that_are_not_finite(
    tiny: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "bad"))
    spoil(folder, "word_embeddings.weight")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError):
        Engine.from_pretrained(folder)
