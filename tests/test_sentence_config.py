from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minibert.errors import ConfigError
from minibert.pooling import Dense, Normalize, Pooling
from minibert.sentence_config import (
    ModuleList,
    SentenceConfig,
    read_modules,
    read_sentence_config,
    read_steps,
)
from tests.checkpoints import write_json

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"


def module(kind: str, path: str, *, new: bool = False) -> dict[str, Any]:
    dotted = f"{NEW}.{kind.lower()}.{kind}" if new else f"{OLD}.{kind}"
    return {"idx": 0, "name": "0", "path": path, "type": dotted}


def modules(folder: Path, *entries: dict[str, Any]) -> ModuleList:
    write_json(folder / "modules.json", list(entries))
    return read_modules(folder)


@pytest.mark.parametrize("new", [False, True])
def test_both_generations_name_the_same_modules(tmp_path: Path, new: bool) -> None:
    found = modules(
        tmp_path,
        module("Transformer", "", new=new),
        module("Pooling", "1_Pooling", new=new),
        module("Dense", "2_Dense", new=new),
        module("Normalize", "3_Normalize", new=new),
    )
    assert found.encoder_folder == tmp_path
    assert found.entries == (
        ("Pooling", tmp_path / "1_Pooling"),
        ("Dense", tmp_path / "2_Dense"),
        ("Normalize", tmp_path / "3_Normalize"),
    )


def test_modules_written_by_sentence_transformers_are_read(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense as TheirDense
    from sentence_transformers.sentence_transformer.modules import Normalize as TheirNormalize
    from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling
    from sentence_transformers.sentence_transformer.modules import Transformer

    from tests.checkpoints import HIDDEN_SIZE, save_tiny

    source = save_tiny(tmp_path / "source")
    saved = tmp_path / "saved"
    SentenceTransformer(
        modules=[
            Transformer(str(source)),
            TheirPooling(HIDDEN_SIZE, "mean", include_prompt=False),
            TheirDense(HIDDEN_SIZE, 8),
            TheirNormalize(),
        ],
        device="cpu",
        prompts={"query": "q: ", "document": ""},
        similarity_fn_name="dot",
        truncate_dim=4,
    ).save(str(saved))
    found = read_modules(saved)
    pooling, dense, normalize = read_steps(found, HIDDEN_SIZE)
    assert pooling == Pooling(("mean",), include_prompt=False)
    assert isinstance(dense, Dense)
    assert dense.weights.weight.shape == (8, HIDDEN_SIZE)
    assert dense.activation == "tanh"
    assert normalize == Normalize()
    settings = read_sentence_config(saved, found.encoder_folder)
    assert settings.prompts == {"query": "q: ", "document": ""}
    assert settings.similarity == "dot"


def test_a_folder_without_modules_is_pooled_by_its_mean(tmp_path: Path) -> None:
    found = read_modules(tmp_path)
    assert found.encoder_folder == tmp_path
    assert read_steps(found, 32) == (Pooling(),)
    assert "default" in found.origin


def test_a_transformer_alone_is_pooled_by_its_mean(tmp_path: Path) -> None:
    assert read_steps(modules(tmp_path, module("Transformer", "")), 32) == (Pooling(),)
    below = modules(tmp_path, module("Transformer", "0_Transformer"))
    assert below.encoder_folder == tmp_path / "0_Transformer"
    assert read_steps(below, 32) == (Pooling(),)


def test_dropout_does_nothing_and_normalize_needs_no_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "1_Pooling" / "config.json", {})
    found = modules(
        tmp_path,
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Dropout", "2_Dropout"),
        module("Normalize", "3_Normalize"),
    )
    assert read_steps(found, 32) == (Pooling(), Normalize())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"module_input_name": "token_embeddings"}, ["module_input_name", "'token_embeddings'"]),
        ({"module_output_name": "other"}, ["module_output_name", "'other'"]),
        ({"p": 1}, ["module_input_name", "['p']"]),
    ],
)
def test_normalize_works_on_the_embedding_or_is_refused(
    tmp_path: Path, values: dict[str, Any], words: list[str]
) -> None:
    write_json(tmp_path / "1_Pooling" / "config.json", {})
    found = modules(
        tmp_path,
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Normalize", "2_Normalize"),
    )
    config = tmp_path / "2_Normalize" / "config.json"
    write_json(config, {"module_input_name": "sentence_embedding", "module_output_name": None})
    assert read_steps(found, 32) == (Pooling(), Normalize())
    write_json(config, values)
    with pytest.raises(ConfigError) as caught:
        read_steps(found, 32)
    for word in (str(config), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("key", ["model_kwargs", "processor_kwargs", "config_args"])
def test_arguments_for_other_libraries_must_be_empty(tmp_path: Path, key: str) -> None:
    path = tmp_path / "sentence_bert_config.json"
    write_json(path, {"max_seq_length": 64, key: {}})
    assert read_sentence_config(tmp_path, tmp_path).max_seq_length == 64
    write_json(path, {"max_seq_length": 64, key: {"x": 1}})
    with pytest.raises(ConfigError, match=f"{key} must be empty"):
        read_sentence_config(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], ["first module must be a Transformer", "[]"]),
        ([module("Pooling", "1_Pooling")], ["first module", "Pooling"]),
        ([{"path": ""}], ["must have a type"]),
        (["Transformer"], ["must have a type", "'Transformer'"]),
        ([{"type": 3, "path": ""}], ["must have a type"]),
        ([module("Transformer", "") | {"path": 3}], ["path", "3"]),
        ([module("Transformer", "") | {"path": None}], ["path", "None"]),
        ([module("Transformer", "") | {"kwargs": ["task"]}], ["kwargs", "['task']"]),
        ([module("Transformer", "") | {"type": "custom_st.Transformer"}], ["never run", "custom"]),
        ([module("Transformer", "/etc")], ["inside the folder", "'/etc'"]),
        ([module("Transformer", "../other")], ["inside the folder", "'../other'"]),
        ([module("Transformer", "a/../../x")], ["inside the folder"]),
        ([module("Transformer", "a\0b")], ["path", "\\x00"]),
        ([module("Transformer", ""), module("CNN", "1_CNN")], ["CNN", "Dense"]),
        ([module("Transformer", ""), module("Transformer", "1")], ["Transformer"]),
        ([module("Transformer", ""), module("Normalize", "1")], ["Pooling must follow"]),
        (
            [module("Transformer", ""), module("Pooling", "1"), module("Pooling", "2")],
            ["one Pooling"],
        ),
    ],
)
def test_modules_are_refused_by_name(tmp_path: Path, entries: list[Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        modules(tmp_path, *entries)
    message = str(caught.value)
    assert str(tmp_path / "modules.json") in message
    for word in words:
        assert word in message


def test_settings_are_read_from_both_files(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config_sentence_transformers.json",
        {
            "__version__": {"pytorch": "2"},
            "prompts": {"query": "q: "},
            "default_prompt_name": "query",
            "similarity_fn_name": "euclidean",
            "truncate_dim": 16,
            "model_type": "SentenceTransformer",
        },
    )
    write_json(
        tmp_path / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True}
    )
    assert read_sentence_config(tmp_path, tmp_path) == SentenceConfig(
        {"query": "q: "}, "query", "euclidean", 16, 128, True
    )


def test_no_files_give_the_defaults(tmp_path: Path) -> None:
    assert read_sentence_config(tmp_path, tmp_path) == SentenceConfig()


@pytest.mark.parametrize("family", ["roberta", "distilbert", "camembert", "xlm-roberta"])
def test_files_named_for_other_families_are_read(tmp_path: Path, family: str) -> None:
    write_json(tmp_path / f"sentence_{family}_config.json", {"max_seq_length": 77})
    assert read_sentence_config(tmp_path, tmp_path).max_seq_length == 77


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config_sentence_transformers.json", {"prompts": ["q"]}, ["prompts", "['q']"]),
        ("config_sentence_transformers.json", {"prompts": {"q": 3}}, ["prompts", "3"]),
        ("config_sentence_transformers.json", {"prompts": "q: "}, ["prompts", "'q: '"]),
        (
            "config_sentence_transformers.json",
            {"prompts": {"a": ""}, "default_prompt_name": "b"},
            ["default_prompt_name", "['a', 'document', 'query']", "'b'"],
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"a": ""}, "default_prompt_name": ["a"]},
            ["default_prompt_name", "got ['a']"],
        ),
        ("config_sentence_transformers.json", {"similarity_fn_name": "x"}, ["cosine", "'x'"]),
        ("config_sentence_transformers.json", {"similarity_fn_name": ["dot"]}, ["['dot']"]),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, ["truncate_dim", "0"]),
        ("config_sentence_transformers.json", {"truncate_dim": "8"}, ["truncate_dim", "'8'"]),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, ["SparseEncoder"]),
        ("config_sentence_transformers.json", {"pooling": "cls"}, ["pooling"]),
        ("sentence_bert_config.json", {"max_seq_length": 0}, ["max_seq_length", "0"]),
        ("sentence_bert_config.json", {"max_seq_length": 1.5}, ["max_seq_length", "1.5"]),
        ("sentence_bert_config.json", {"max_seq_length": True}, ["max_seq_length", "True"]),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, ["do_lower_case", "'yes'"]),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, ["transformer_task"]),
        ("sentence_bert_config.json", {"processing_kwargs": {"a": 1}}, ["processing_kwargs"]),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, ["modality_config"]),
        ("sentence_bert_config.json", {"pool": 1}, ["pool"]),
    ],
)
def test_settings_are_refused_by_name(
    tmp_path: Path, file: str, values: dict[str, Any], words: list[str]
) -> None:
    write_json(tmp_path / file, values)
    with pytest.raises(ConfigError) as caught:
        read_sentence_config(tmp_path, tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    for word in words:
        assert word in str(caught.value)
