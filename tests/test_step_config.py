"""Configurations of pooling and dense layers, of both generations of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from minibert.errors import CheckpointError, ConfigError, WeightsError
from minibert.pooling import POOL_MODES, Dense, Pooling
from minibert.sentence_config import ModuleList, read_steps
from tests.checkpoints import write_json
from tests.test_sentence_config import module, modules


@pytest.mark.parametrize(
    ("values", "modes"),
    [
        ({}, ("mean",)),
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode": "max", "embedding_dimension": 32}, ("max",)),
        ({"pooling_mode": ["lasttoken", "cls"]}, ("lasttoken", "cls")),
    ],
)
def test_pooling_reads_both_generations(values: dict[str, Any], modes: tuple[str, ...]) -> None:
    assert Pooling.from_dict(values, hidden_size=32).modes == modes


@pytest.mark.parametrize("mode", POOL_MODES)
def test_every_mode_is_saved_by_sentence_transformers_under_the_same_name(
    mode: str, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    theirs = Theirs(32, mode).get_config_dict()
    assert Pooling.from_dict(theirs, hidden_size=32).modes == (mode,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pooling_mode": "median"}, ["pooling_mode", "weightedmean", "'median'"]),
        ({"pooling_mode": []}, ["pooling_mode", "[]"]),
        ({"pooling_mode": [1]}, ["pooling_mode", "[1]"]),
        ({"pooling_mode": None}, ["pooling_mode", "None"]),
        ({"pooling_mode_rms": True}, ["pooling_mode_rms"]),
        ({"pooling_mode_cls_token": "yes"}, ["pooling_mode_cls_token", "boolean", "'yes'"]),
        ({"word_embedding_dimension": 384}, ["word_embedding_dimension", "32", "384"]),
        ({"embedding_dimension": "32"}, ["embedding_dimension", "32", "'32'"]),
        ({"include_prompt": 1}, ["include_prompt", "boolean", "1"]),
        ({"include_prompt": None}, ["include_prompt", "boolean", "None"]),
    ],
)
def test_pooling_is_refused_by_name(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Pooling.from_dict(values, hidden_size=32, source="1_Pooling/config.json")
    assert str(caught.value).startswith("1_Pooling/config.json: ")
    for word in words:
        assert word in str(caught.value)


def dense(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> ModuleList:
    values: dict[str, Any] = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    values |= changes
    write_json(
        folder / "2_Dense" / "config.json", {k: v for k, v in values.items() if v is not ...}
    )
    write_json(folder / "1_Pooling" / "config.json", {})
    if tensors is None:
        tensors = {
            "linear.weight": np.ones((8, 32), np.float32),
            "linear.bias": np.zeros(8, np.float32),
        }
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    return modules(
        folder,
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Dense", "2_Dense"),
    )


@pytest.mark.parametrize(
    ("named", "computed"),
    [
        ("torch.nn.modules.activation.Tanh", "tanh"),
        ("torch.nn.modules.linear.Identity", None),
        ("torch.nn.modules.activation.ReLU", "relu"),
        ("torch.nn.modules.activation.GELU", "gelu"),
        ("torch.nn.modules.activation.SiLU", "silu"),
    ],
)
def test_dense_reads_its_activation(tmp_path: Path, named: str, computed: str | None) -> None:
    step = read_steps(dense(tmp_path, activation_function=named), 32)[1]
    assert isinstance(step, Dense)
    assert step.activation == computed


def test_dense_may_have_no_bias_and_a_residual(tmp_path: Path) -> None:
    tensors = {
        "linear.weight": np.ones((8, 32), np.float16),
        "residual.weight": np.ones((8, 32), np.float32),
    }
    step = read_steps(dense(tmp_path, tensors, bias=False, use_residual=True), 32)[1]
    assert isinstance(step, Dense)
    assert step.weights.bias is None
    assert step.residual is not None
    assert step.weights.weight.dtype == np.float32


WEIGHT = np.ones((8, 32), np.float32)
BIAS = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("tensors", "changes", "kind", "words"),
    [
        (None, {"in_features": 16}, ConfigError, ["in_features", "32", "16"]),
        (None, {"in_features": ...}, ConfigError, ["in_features", "32"]),
        (None, {"out_features": 0}, ConfigError, ["out_features", "0"]),
        (None, {"out_features": "8"}, ConfigError, ["out_features", "'8'"]),
        (None, {"out_features": True}, ConfigError, ["out_features", "True"]),
        (None, {"bias": "yes"}, ConfigError, ["bias", "boolean", "'yes'"]),
        (None, {"use_residual": 1}, ConfigError, ["use_residual", "boolean", "1"]),
        (None, {"activation_function": "my.Softsign"}, ConfigError, ["Tanh", "Softsign"]),
        (None, {"activation_function": "evil.Tanh"}, ConfigError, ["torch", "evil.Tanh"]),
        (None, {"activation_function": None}, ConfigError, ["activation_function", "None"]),
        (None, {"module_input_name": "token_embeddings"}, ConfigError, ["module_input_name"]),
        (None, {"gate": True}, ConfigError, ["gate"]),
        ({"linear.weight": WEIGHT}, {}, WeightsError, ["linear.bias"]),
        ({"linear.weight": WEIGHT, "linear.bias": BIAS, "x": BIAS}, {}, WeightsError, ["'x'"]),
        ({"linear.weight": WEIGHT.T.copy(), "linear.bias": BIAS}, {}, WeightsError, ["(8, 32)"]),
        ({"linear.weight": WEIGHT * np.nan, "linear.bias": BIAS}, {}, WeightsError, ["finite"]),
        (
            {"linear.weight": WEIGHT.astype(np.int32), "linear.bias": BIAS},
            {},
            WeightsError,
            ["F32", "I32"],
        ),
    ],
)
def test_dense_is_refused_by_name(
    tmp_path: Path,
    tensors: dict[str, np.ndarray] | None,
    changes: dict[str, Any],
    kind: type[CheckpointError],
    words: list[str],
) -> None:
    found = dense(tmp_path, tensors, **changes)
    with pytest.raises(kind) as caught:
        read_steps(found, 32)
    assert str(tmp_path / "2_Dense") in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_dense_of_pickles_is_refused(tmp_path: Path) -> None:
    found = dense(tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="never loaded"):
        read_steps(found, 32)
