"""Every family against transformers really running, in float64 and in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert import Engine
from tests.conftest import FAMILIES, TinyModel

TEXTS = [
    "the cat sat on the mat",
    "",
    "a",
    "bread stays soft in a paper bag and the dog sat on ice " * 2,
    "moon sun lake walk safe qzx",
    "word " * 90,  # longer than the positions: cut
]


def hidden_states(folder: Path, **options: Any) -> list[NDArray[Any]]:
    with Engine.from_pretrained(folder, truncation="silent", **options) as engine:
        states: list[NDArray[Any]] = engine.encode(TEXTS, output_value="token_embeddings")
        return states


def transformers_states(folder: Path, dtype: str) -> list[NDArray[Any]]:
    """last_hidden_state of each text, one text at a time, as transformers computes it."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(getattr(torch, dtype)).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    roberta_like = model.config.model_type in ("roberta", "xlm-roberta", "camembert")
    first = model.config.pad_token_id + 1 if roberta_like else 0
    tokenizer.enable_truncation(model.config.max_position_embeddings - first)
    states = []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer.encode(text).ids])
            states.append(model(input_ids=ids).last_hidden_state[0].double().numpy())
    return states


def max_error(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> float:
    assert [len(states) for states in found] == [len(states) for states in expected]
    return max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_as_near_to_float64_as_plain_float32(
    tiny: TinyModel, family: str, dtype: str
) -> None:
    folder = tiny(family, dtype=dtype)
    exact = transformers_states(folder, "float64")
    plain = max_error(transformers_states(folder, "float32"), exact)
    assert max_error(hidden_states(folder), exact) <= 2 * plain + 1e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_on_numpy_equals_transformers_in_float64(tiny: TinyModel, family: str) -> None:
    folder = tiny(family)
    exact = transformers_states(folder, "float64")
    # Two float64 programs differ by their rounding: some hundred times 2^-53 at values near 1.
    assert max_error(hidden_states(folder, device="numpy", dtype="float64"), exact) <= 1e-12


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_every_activation_is_the_one_named(tiny: TinyModel, hidden_act: str) -> None:
    folder = tiny("bert", hidden_act=hidden_act)
    exact = transformers_states(folder, "float64")
    plain = max_error(transformers_states(folder, "float32"), exact)
    assert max_error(hidden_states(folder), exact) <= 2 * plain + 1e-7


def test_layer_norm_eps_comes_from_the_config(tiny: TinyModel) -> None:
    folder = tiny("bert", layer_norm_eps=0.05)
    exact = transformers_states(folder, "float64")
    plain = max_error(transformers_states(folder, "float32"), exact)
    assert max_error(hidden_states(folder), exact) <= 2 * plain + 1e-7


def test_layers_of_different_shapes_run(tiny: TinyModel, tmp_path: Path) -> None:
    """Heads and neurons cut out by hand equal the same ones multiplied by zero in transformers."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "pruned"
    shutil.copytree(tiny("bert"), folder)
    full = load_file(folder / "model.safetensors")
    zeroed = {name: array.copy() for name, array in full.items()}
    # Layer 1: drop head 2 of 4 (head_dim 12); layer 2: drop the last 37 of 100 neurons.
    drop, layer_1, layer_2 = slice(24, 36), "encoder.layer.1.", "encoder.layer.2."
    zeroed[layer_1 + "attention.output.dense.weight"][:, drop] = 0
    zeroed[layer_2 + "output.dense.weight"][:, 63:] = 0
    exact_folder = tmp_path / "zeroed"
    shutil.copytree(folder, exact_folder)
    save_file(zeroed, exact_folder / "model.safetensors")
    for part in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            name = f"{layer_1}attention.self.{part}.{kind}"
            full[name] = np.delete(full[name], np.arange(24, 36), axis=0)
    name = layer_1 + "attention.output.dense.weight"
    full[name] = np.delete(full[name], np.arange(24, 36), axis=1)
    full[layer_2 + "intermediate.dense.weight"] = full[layer_2 + "intermediate.dense.weight"][:63]
    full[layer_2 + "intermediate.dense.bias"] = full[layer_2 + "intermediate.dense.bias"][:63]
    full[layer_2 + "output.dense.weight"] = full[layer_2 + "output.dense.weight"][:, :63]
    save_file(
        {name: np.ascontiguousarray(array) for name, array in full.items()},
        folder / "model.safetensors",
    )
    exact = transformers_states(exact_folder, "float64")
    plain = max_error(transformers_states(exact_folder, "float32"), exact)
    assert max_error(hidden_states(folder), exact) <= 2 * plain + 1e-7


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_a_task_model_with_its_prefix_gives_the_same_bytes(
    tiny: TinyModel, tmp_path: Path, family: str
) -> None:
    import torch
    import transformers

    folder = tiny(family)
    kinds = {
        "bert": "BertForMaskedLM",
        "roberta": "RobertaForSequenceClassification",
        "distilbert": "DistilBertForTokenClassification",
        "electra": "ElectraForPreTraining",
    }
    torch.manual_seed(1)
    model = getattr(transformers, kinds[family]).from_pretrained(folder)
    model.save_pretrained(tmp_path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    for ours, theirs in zip(hidden_states(tmp_path), hidden_states(folder), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_old_layer_norm_names_give_the_same_bytes(tiny: TinyModel, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny("bert")
    shutil.copytree(folder, tmp_path / "old")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    save_file(renamed, tmp_path / "old" / "model.safetensors")
    for ours, theirs in zip(hidden_states(tmp_path / "old"), hidden_states(folder), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_shards_give_the_same_bytes(tiny: TinyModel, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = tiny("roberta")
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(folder / "tokenizer.json", tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    for ours, theirs in zip(hidden_states(tmp_path), hidden_states(folder), strict=True):
        assert ours.tobytes() == theirs.tobytes()
