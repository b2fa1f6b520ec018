"""Model folders that are broken: each is refused by name, and nothing of it stays."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import Engine
from minibert.errors import (
    ConfigError,
    MinibertError,
    ModelNotFoundError,
    TokenizerError,
    WeightsError,
)
from tests.checkpoints import HIDDEN_SIZE, edit_json, edit_tensors, write_json
from tests.refusals import mapped, refusal

WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
INNER = "encoder.layer.1.intermediate.dense.weight"


pytestmark = pytest.mark.usefixtures("quick_collection")


def cut_file(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:keep])


def raw_tensors(folder: Path, header: dict[str, Any], data: bytes, length: int = 0) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + data)


def overlap(folder: Path) -> None:
    entries = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
    raw_tensors(folder, entries, b"\0" * 12)


def shards(folder: Path, *, twice: bool = False, lose: str = "", path: str = "") -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    weight_map = {}
    for i, part in enumerate((names[:half], names[half:]), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        chosen = {name: tensors[name] for name in part}
        if twice and i == 2:
            chosen[names[0]] = tensors[names[0]]
        if shard != lose:
            save_file(chosen, folder / shard)
        weight_map |= dict.fromkeys(part, path or shard)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")


def set_module(folder: Path, **changes: Any) -> None:
    path = folder / "modules.json"
    entries = json.loads(path.read_text())
    entries[1] |= changes
    write_json(path, entries)


def add_dense(folder: Path, weight: np.ndarray, **changes: Any) -> None:
    path = folder / "modules.json"
    entries = json.loads(path.read_text())
    entries[2] = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    write_json(path, entries)
    values = {
        "in_features": HIDDEN_SIZE,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    write_json(folder / "2_Dense" / "config.json", values | changes)
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")


def tensor(name: str, value: np.ndarray | None) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, **{name.replace(".", "__"): value})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def sentence(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config_sentence_transformers.json", **changes)


DENSE = np.ones((8, HIDDEN_SIZE), np.float32)
BROKEN: list[tuple[str, Callable[[Path], None], type[MinibertError], list[str]]] = [
    ("folder is missing", shutil.rmtree, ModelNotFoundError, ["must exist"]),
    ("folder is empty", lambda f: (shutil.rmtree(f), f.mkdir()), ConfigError, ["config.json"]),
    (
        "a file in its place",
        lambda f: (shutil.rmtree(f), f.write_text("x")),
        ModelNotFoundError,
        ["it is a file"],
    ),
    ("no config", lambda f: (f / "config.json").unlink(), ConfigError, ["config.json"]),
    (
        "config is a folder",
        lambda f: (f / "config.json").unlink() or (f / "config.json").mkdir(),
        ConfigError,
        ["config.json", "readable"],
    ),
    ("config is empty", text("config.json", ""), ConfigError, ["config.json", "readable JSON"]),
    ("config is cut", text("config.json", '{"model_type": "be'), ConfigError, ["readable JSON"]),
    ("config is an array", text("config.json", "[]"), ConfigError, ["an object", "list"]),
    ("config is deep", text("config.json", "[" * 100_000), ConfigError, ["readable JSON"]),
    ("config is UTF-16", text("config.json", "{}".encode("utf-16")), ConfigError, ["readable"]),
    ("config has an unknown key", config(alibi=True), ConfigError, ["alibi", "ignore_config_keys"]),
    ("config has a text for a number", config(hidden_size="32"), ConfigError, ["hidden_size"]),
    ("config has true for a number", config(num_hidden_layers=True), ConfigError, ["True"]),
    ("another family", config(model_type="deberta-v2"), ConfigError, ["xlm-roberta", "deberta"]),
    ("another activation", config(hidden_act="mish"), ConfigError, ["hidden_act", "relu", "mish"]),
    (
        "another kind of position",
        config(position_embedding_type="relative_key_query"),
        ConfigError,
        ["position_embedding_type", "absolute", "relative_key_query"],
    ),
    (
        "weights quantised by another tool",
        config(quantization_config={"quant_method": "gptq"}),
        ConfigError,
        ["quantization_config", "gptq"],
    ),
    ("a decoder", config(is_decoder=True), ConfigError, ["is_decoder", "False"]),
    ("more layers than tensors", config(num_hidden_layers=3), WeightsError, ["layer.2", "missing"]),
    ("fewer layers than tensors", config(num_hidden_layers=1), WeightsError, ["layer.1", "= 1"]),
    ("a billion layers", config(num_hidden_layers=10**9), WeightsError, ["layer.2", "missing"]),
    ("a smaller vocabulary", config(vocab_size=9), WeightsError, [WORD, "(9, 32)"]),
    ("pickles only", pickle_only, WeightsError, ["pytorch_model.bin", "never loaded"]),
    (
        "no weights",
        lambda f: (f / "model.safetensors").unlink(),
        WeightsError,
        ["model.safetensors", "neither"],
    ),
    (
        "weights are cut",
        lambda f: cut_file(f, "model.safetensors", 9_000),
        WeightsError,
        ["sound safetensors"],
    ),
    (
        "weights are empty",
        lambda f: cut_file(f, "model.safetensors", 0),
        WeightsError,
        ["sound safetensors"],
    ),
    (
        "weights are a pointer of git-lfs",
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        WeightsError,
        ["sound safetensors"],
    ),
    (
        "header longer than the file",
        lambda f: raw_tensors(f, {}, b"", 1 << 40),
        WeightsError,
        ["sound safetensors"],
    ),
    ("offsets overlap", overlap, WeightsError, ["sound safetensors"]),
    (
        "shard outside the folder",
        lambda f: shards(f, path="../good/model.safetensors"),
        WeightsError,
        ["inside", "../good"],
    ),
    (
        "shard is missing",
        lambda f: shards(f, lose="model-00002-of-00002.safetensors"),
        WeightsError,
        ["model-00002-of-00002.safetensors", "missing"],
    ),
    ("tensor in two shards", lambda f: shards(f, twice=True), WeightsError, ["two"]),
    ("tensor is missing", tensor(QUERY, None), WeightsError, [QUERY, "missing"]),
    (
        "tensor is misshapen",
        tensor(INNER, np.zeros((48, 31), np.float32)),
        WeightsError,
        [INNER, "(48, 32)", "(48, 31)"],
    ),
    ("tensor too many", tensor("lora.A", np.zeros(1, np.float32)), WeightsError, ["lora.A"]),
    ("NaN", tensor(INNER, np.full((48, 32), np.nan, np.float32)), WeightsError, [INNER, "finite"]),
    ("inf", tensor(INNER, np.full((48, 32), np.inf, np.float16)), WeightsError, [INNER, "finite"]),
    ("int8 weights", tensor(INNER, np.ones((48, 32), np.int8)), WeightsError, [INNER, "F32", "I8"]),
    ("modules is an object", text("modules.json", "{}"), ConfigError, ["an array", "dict"]),
    ("module with an absolute path", lambda f: set_module(f, path="/tmp"), ConfigError, ["/tmp"]),
    ("module above the folder", lambda f: set_module(f, path="../x"), ConfigError, ["../x"]),
    (
        "module of an unknown kind",
        lambda f: set_module(f, type="sentence_transformers.models.LSTM"),
        ConfigError,
        ["Pooling", "LSTM"],
    ),
    (
        "module with code of its own",
        lambda f: set_module(f, type="custom_pooling.Pooling"),
        ConfigError,
        ["custom_pooling.Pooling", "never run"],
    ),
    (
        "pooling has an unknown key",
        lambda f: edit_json(f / "1_Pooling" / "config.json", pooling_mode_power=True),
        ConfigError,
        ["1_Pooling", "pooling_mode_power"],
    ),
    (
        "pooling of another width",
        lambda f: edit_json(f / "1_Pooling" / "config.json", word_embedding_dimension=384),
        ConfigError,
        ["word_embedding_dimension", "32", "384"],
    ),
    (
        "pooling has no file",
        lambda f: (f / "1_Pooling" / "config.json").unlink(),
        ConfigError,
        ["1_Pooling", "missing"],
    ),
    (
        "dense of another shape",
        lambda f: add_dense(f, DENSE.T.copy()),
        WeightsError,
        ["linear.weight", "(8, 32)", "(32, 8)"],
    ),
    (
        "dense with an unknown activation",
        lambda f: add_dense(f, DENSE, activation_function="torch.nn.Softsign"),
        ConfigError,
        ["Tanh", "Softsign"],
    ),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), TokenizerError, ["vocab.txt"]),
    ("sentencepiece only", only_sentencepiece, TokenizerError, ["sentencepiece.bpe.model"]),
    ("tokenizer is damaged", text("tokenizer.json", "{"), TokenizerError, ["tokenizer.json"]),
    ("prompts are an array", sentence(prompts=["q"]), ConfigError, ["prompts", "['q']"]),
    ("a prompt is a number", sentence(prompts={"q": 1}), ConfigError, ["prompts", "1"]),
    (
        "default prompt is unknown",
        sentence(default_prompt_name="passage"),
        ConfigError,
        ["default_prompt_name", "query", "'passage'"],
    ),
    (
        "no room for a token",
        text("sentence_bert_config.json", '{"max_seq_length": 2}'),
        ConfigError,
        ["max_seq_length", "2 special tokens"],
    ),
]


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [pytest.param(*case[1:], id=case[0]) for case in BROKEN],
)
def test_a_broken_folder_is_refused_and_nothing_of_it_stays(
    good: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    kind: type[MinibertError],
    words: list[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    damage(folder)
    threads = set(threading.enumerate())
    found, message = refusal(lambda: Engine.from_pretrained(folder, local_files_only=True))
    assert found is kind, message
    assert str(folder) in message
    for word in words:
        assert word in message
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert mapped(folder) == []
    if folder.is_dir():
        shutil.rmtree(folder)
    elif folder.exists():
        folder.unlink()
    shutil.copytree(good, folder)
    with Engine.from_pretrained(folder, local_files_only=True) as repaired:
        assert repaired.encode("the cat").shape == (HIDDEN_SIZE,)


def test_files_with_a_byte_order_mark_are_read(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    for path in folder.rglob("*.json"):
        if path.name != "tokenizer.json":  # read by the tokenizers library
            path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    with Engine.from_pretrained(folder) as marked, Engine.from_pretrained(good) as plain:
        assert np.array_equal(marked.encode("the cat"), plain.encode("the cat"))
