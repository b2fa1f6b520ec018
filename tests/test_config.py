from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minibert.config import SUPPORTED_MODEL_TYPES, EncoderConfig, read_json
from minibert.errors import ConfigError

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 100,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 64,
    "activation": "gelu",
}


@pytest.mark.parametrize("family", SUPPORTED_MODEL_TYPES)
def test_every_key_of_a_default_config_of_transformers_is_known(family: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family)
    config = EncoderConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False)))
    assert config.hidden_size == theirs.hidden_size
    assert config.num_hidden_layers == theirs.num_hidden_layers
    assert config.num_attention_heads == theirs.num_attention_heads
    assert config.vocab_size == theirs.vocab_size
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.pad_token_id == theirs.pad_token_id
    assert config.layer_norm_eps == getattr(theirs, "layer_norm_eps", 1e-12)
    assert config.embedding_size == getattr(theirs, "embedding_size", theirs.hidden_size)


@pytest.mark.parametrize("family", SUPPORTED_MODEL_TYPES)
def test_missing_keys_take_the_defaults_of_transformers(family: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family)
    given = {**BERT, **DISTILBERT, "model_type": family}
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    keys += ("intermediate_size", "dim", "n_layers", "n_heads", "hidden_dim")
    own = {key: given[key] for key in keys if key == "model_type" or hasattr(theirs, key)}
    if family == "distilbert":
        own = {key: own[key] for key in own if key == "model_type" or key in DISTILBERT}
    config = EncoderConfig.from_dict(own)
    assert config.pad_token_id == theirs.pad_token_id
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.hidden_act == "gelu"


def test_fields_are_those_of_the_file() -> None:
    config = EncoderConfig.from_dict(BERT)
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (32, 8, 48)
    assert (config.max_tokens, config.first_position, config.embedding_size) == (64, 0, 32)
    assert config.layer_norm_eps == 1e-12


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_positions_of_roberta_start_after_the_pad_token(family: str) -> None:
    config = EncoderConfig.from_dict(BERT | {"model_type": family, "pad_token_id": 1})
    assert config.first_position == 2
    assert config.max_tokens == 62


def test_electra_may_have_narrower_embeddings() -> None:
    config = EncoderConfig.from_dict(BERT | {"model_type": "electra", "embedding_size": 16})
    assert (config.embedding_size, config.hidden_size) == (16, 32)


def test_distilbert_names_are_understood() -> None:
    config = EncoderConfig.from_dict(DISTILBERT)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert (config.intermediate_size, config.type_vocab_size) == (48, 0)


@pytest.mark.parametrize(
    ("named", "computed"),
    [
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("tanh", "tanh"),
    ],
)
def test_activations_compute_what_transformers_computes(named: str, computed: str) -> None:
    import numpy as np
    import torch
    from transformers.activations import ACT2FN

    from minibert.ops.activations import activate

    assert EncoderConfig.from_dict(BERT | {"hidden_act": named}).hidden_act == computed
    x = np.linspace(-6, 6, 1001)
    theirs = ACT2FN[named](torch.from_numpy(x)).numpy()
    ours = x.copy()
    activate(ours, EncoderConfig.from_dict(BERT | {"hidden_act": named}).hidden_act)
    # float64 on both sides: a handful of roundings of values up to 6.
    assert np.abs(ours - theirs).max() <= 16 * np.finfo(np.float64).eps * 6


def test_labels_and_pruned_heads_are_read() -> None:
    config = EncoderConfig.from_dict(
        BERT | {"id2label": {"0": "no", "1": "yes"}, "pruned_heads": {"1": [0, 2]}}
    )
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.num_labels == 2
    assert config.pruned_heads == {1: (0, 2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, ["model_type", "bert", "electra", "'gpt2'"]),
        ({"model_type": None}, ["model_type", "None"]),
        ({"model_type": ["bert"]}, ["model_type", "['bert']"]),
        ({"hidden_act": "gelu_10"}, ["hidden_act", "gelu_new", "'gelu_10'"]),
        ({"hidden_act": 3}, ["hidden_act", "3"]),
        ({"hidden_act": None}, ["hidden_act", "None"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "absolute"]),
        ({"quantization_config": {"bits": 8}}, ["quantization_config", "bits"]),
        ({"is_decoder": True}, ["is_decoder", "False", "True"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"rope_theta": 10000}, ["rope_theta", "ignore_config_keys"]),
        ({"vocab_size": None}, ["vocab_size", "missing"]),
        ({"hidden_size": "32"}, ["hidden_size", "number", "'32'"]),
        ({"hidden_size": 32.0}, ["hidden_size", "number", "32.0"]),
        ({"hidden_size": True}, ["hidden_size", "number", "True"]),
        ({"hidden_size": 30}, ["hidden_size", "multiple", "num_attention_heads = 4", "30"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "at least 1", "0"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers", "at least 1", "-1"]),
        ({"type_vocab_size": -1}, ["type_vocab_size", "at least", "-1"]),
        ({"layer_norm_eps": -1e-12}, ["layer_norm_eps", "-1e-12"]),
        ({"layer_norm_eps": float("nan")}, ["layer_norm_eps", "nan"]),
        ({"layer_norm_eps": "1e-12"}, ["layer_norm_eps", "number"]),
        ({"pad_token_id": 100}, ["pad_token_id", "vocab_size", "100"]),
        ({"pad_token_id": "0"}, ["pad_token_id", "'0'"]),
        ({"model_type": "roberta", "pad_token_id": None}, ["pad_token_id", "roberta"]),
        ({"model_type": "roberta", "pad_token_id": 63}, ["max_position_embeddings", "64"]),
        ({"model_type": "electra", "embedding_size": "16"}, ["embedding_size", "'16'"]),
        ({"model_type": "electra", "embedding_size": 0}, ["embedding_size", "0"]),
        ({"id2label": ["no", "yes"]}, ["id2label", "['no', 'yes']"]),
        ({"id2label": {"no": 0}}, ["id2label", "'no'"]),
        ({"num_labels": -1}, ["num_labels", "-1"]),
        ({"num_labels": "2"}, ["num_labels", "'2'"]),
        ({"architectures": "BertModel"}, ["architectures", "'BertModel'"]),
        ({"architectures": 5}, ["architectures", "5"]),
        ({"pruned_heads": [1]}, ["pruned_heads", "[1]"]),
        ({"pruned_heads": {"0": [7]}}, ["pruned_heads", "7"]),
        ({"pruned_heads": {"0": [0, 1, 2, 3]}}, ["pruned_heads"]),
        ({"pruned_heads": {"5": [0]}}, ["pruned_heads", "5"]),
    ],
)
def test_refused_by_name(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        EncoderConfig.from_dict(BERT | change, source="here/config.json")
    message = str(caught.value)
    assert message.startswith("here/config.json: ")
    for word in words:
        assert word in message


def test_an_unknown_key_may_be_ignored_by_name() -> None:
    values = BERT | {"rope_theta": 10000, "is_decoder": True}
    config = EncoderConfig.from_dict(values, ignore_keys=["rope_theta", "is_decoder"])
    assert config == EncoderConfig.from_dict(BERT)


@pytest.mark.parametrize(
    ("base", "extra"),
    [
        (DISTILBERT, {"sinusoidal_pos_embds": False, "tie_weights_": True, "output_past": True}),
        (DISTILBERT, {"tie_weights_": True, "xla_device": None, "use_bfloat16": False}),
        (BERT, {"eos_token_ids": None, "_num_labels": 5, "output_past": True}),
        (BERT, {"emb_size": 312, "gradient_checkpointing": False, "pooler_type": "first"}),
        (BERT, {"matryoshka_dimensions": [256], "is_matryoshka": True}),
    ],
)
def test_keys_without_effect_of_published_models_are_known(
    base: dict[str, Any], extra: dict[str, Any]
) -> None:
    assert EncoderConfig.from_dict(base | extra) == EncoderConfig.from_dict(base)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BERT), encoding="utf-8-sig")
    assert EncoderConfig.from_file(path) == EncoderConfig.from_dict(BERT)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "readable JSON"),
        (b"{", "readable JSON"),
        (b"\xff\xfe{}", "readable JSON"),
        (b"[]", "an object, got list"),
        (b"null", "an object, got NoneType"),
        (b"[" * 200_000, "readable JSON"),
        (b'{"a":' * 200_000, "readable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "readable JSON"),
    ],
)
def test_damaged_json_names_the_file(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=word) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="readable"):
        read_json(tmp_path)
