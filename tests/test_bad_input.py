"""What a person may hand over by mistake: each case is a clear error, or the right answer."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import Engine
from minibert.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    EngineClosedError,
    InputError,
    MemoryLimitError,
    MinibertError,
    ModelNotFoundError,
    TokenizerError,
    TruncationError,
    TruncationWarning,
    WeightsError,
)
from tests.checkpoints import (
    HIDDEN_SIZE,
    MAX_LENGTH,
    edit_json,
    edit_tensors,
    save_sentence_files,
    save_tiny,
    write_json,
)

WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
INNER = "encoder.layer.1.intermediate.dense.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("bad_input") / "good")
    save_sentence_files(folder)
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "the cat ", "document": ""}, "default_prompt_name": None},
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick_collection(good: Path) -> Iterator[None]:
    """Leave what the libraries hold out of the collections that the tests ask for."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def engine(good: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(good, local_files_only=True) as engine:
        yield engine


def refusal(call: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """What a call raises, without keeping its traceback (and all that it holds) alive."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, ""


def mapped(folder: Path) -> list[str]:
    """Files of a folder that this process still has mapped or open (where the system says so)."""
    found = []
    maps, opened = Path("/proc/self/maps"), Path("/proc/self/fd")
    if maps.exists():
        found += [line for line in maps.read_text().splitlines() if str(folder) in line]
        for link in list(opened.iterdir()):
            try:
                found += [str(link)] if str(folder) in str(link.readlink()) else []
            except OSError:  # the listing's own handle is gone by now
                continue
    return found


# ---- folders -----------------------------------------------------------------------------------
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


# ---- arguments of from_pretrained --------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"device": "tpu"}, DeviceError, ["device", "auto", "cpu", "'tpu'"]),
        ({"device": None}, DeviceError, ["device", "None"]),
        ({"device": ["cpu"]}, DeviceError, ["device", "['cpu']"]),
        ({"device": "numpy", "dtype": "float8"}, DeviceError, ["dtype", "float32", "'float8'"]),
        ({"matmul_precision": "low"}, DeviceError, ["matmul_precision", "highest", "'low'"]),
        ({"threads": 0}, DeviceError, ["threads", "at least 1", "0"]),
        ({"threads": "2"}, DeviceError, ["threads", "'2'"]),
        ({"threads": True}, DeviceError, ["threads", "True"]),
        ({"max_batch_tokens": 0}, InputError, ["max_batch_tokens", "at least 1", "0"]),
        ({"max_batch_tokens": 1.5}, InputError, ["max_batch_tokens", "1.5"]),
        ({"max_batch_tokens": True}, InputError, ["max_batch_tokens", "True"]),
        ({"memory_limit": 0}, InputError, ["memory_limit", "'512MB'", "0"]),
        ({"memory_limit": -1}, InputError, ["memory_limit", "-1"]),
        ({"memory_limit": True}, InputError, ["memory_limit", "True"]),
        ({"memory_limit": "lots"}, InputError, ["memory_limit", "'lots'"]),
        ({"memory_limit": "5 parsecs"}, InputError, ["memory_limit", "'5 parsecs'"]),
        ({"memory_limit": "infGB"}, InputError, ["memory_limit", "'infGB'"]),
        ({"memory_limit": float("nan")}, InputError, ["memory_limit", "nan"]),
        ({"memory_limit": ["1GB"]}, InputError, ["memory_limit", "['1GB']"]),
        ({"memory_limit": 1000}, MemoryLimitError, ["memory_limit", "at least", "got 1000"]),
        ({"max_length": 2}, InputError, ["max_length", f"3 to {MAX_LENGTH}", "got 2"]),
        ({"max_length": 65}, InputError, ["max_length", f"3 to {MAX_LENGTH}", "got 65"]),
        ({"max_length": True}, InputError, ["max_length", "True"]),
        ({"max_length": "8"}, InputError, ["max_length", "'8'"]),
        ({"truncation": "raise"}, InputError, ["truncation", "silent", "'raise'"]),
        ({"truncation": True}, InputError, ["truncation", "warn", "True"]),
        ({"truncation_side": "middle"}, InputError, ["truncation_side", "left", "'middle'"]),
        ({"prompts": ["q"]}, InputError, ["prompts", "['q']"]),
        ({"prompts": {"q": 3}}, InputError, ["prompts", "3"]),
        ({"prompts": "q: "}, InputError, ["prompts", "'q: '"]),
        ({"default_prompt_name": "x"}, InputError, ["default_prompt_name", "query", "'x'"]),
        ({"default_prompt_name": ["x"]}, InputError, ["default_prompt_name", "['x']"]),
        ({"truncate_dim": 0}, InputError, ["truncate_dim", "1 to 32", "0"]),
        ({"truncate_dim": 33}, InputError, ["truncate_dim", "1 to 32", "33"]),
        ({"truncate_dim": True}, InputError, ["truncate_dim", "True"]),
        ({"similarity_function": "hamming"}, InputError, ["similarity_function", "'hamming'"]),
        ({"ignore_config_keys": "alibi"}, InputError, ["ignore_config_keys", "'alibi'"]),
    ],
)
def test_wrong_arguments_of_loading_are_refused(
    good: Path, options: dict[str, Any], kind: type[MinibertError], words: list[str]
) -> None:
    threads = set(threading.enumerate())
    found, message = refusal(lambda: Engine.from_pretrained(good, **options))
    assert found is kind, message
    for word in words:
        assert word in message
    gc.collect()
    assert set(threading.enumerate()) == threads


# ---- arguments of encode -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        (None, {}, ["inputs", "None"]),
        (b"the cat", {}, ["inputs", "bytes"]),
        (bytearray(b"the"), {}, ["text 0", "str", "int"]),
        (5, {}, ["inputs", "int"]),
        (True, {}, ["inputs", "bool"]),
        (1.5, {}, ["inputs", "float"]),
        (object(), {}, ["inputs", "object"]),
        ({"text": "the cat"}, {}, ["inputs", "dict"]),
        (["the", None], {}, ["text 1", "str", "NoneType"]),
        (["the", b"cat"], {}, ["text 1", "bytes"]),
        (["the", 3], {}, ["text 1", "int"]),
        ([["the", "cat"]], {}, ["text 0", "list"]),
        ([("the", "cat")], {}, ["text 0", "tuple"]),
        (np.array(["the", 1], object), {}, ["text 1", "int"]),
        (np.array([["the"]]), {}, ["text 0", "list"]),
        (np.array([1.0, 2.0]), {}, ["text 0", "float"]),
        (["fine", "a\ud800"], {}, ["text 1", "surrogate", "character 1"]),
        ("the", {"sentences": "cat"}, ["inputs", "sentences", "both"]),
        ("the", {"batch_size": 0}, ["batch_size", "at least 1", "0"]),
        ("the", {"batch_size": -3}, ["batch_size", "-3"]),
        ("the", {"batch_size": True}, ["batch_size", "True"]),
        ("the", {"batch_size": 2.0}, ["batch_size", "2.0"]),
        ("the", {"batch_size": "32"}, ["batch_size", "'32'"]),
        ([], {"batch_size": 0}, ["batch_size", "0"]),
        ("the", {"prompt_name": "passage"}, ["prompt_name", "document", "query", "'passage'"]),
        ("the", {"prompt_name": ["query"]}, ["prompt_name", "['query']"]),
        ("the", {"prompt": 3}, ["prompt", "str", "int"]),
        ("the", {"prompt": "\udc00"}, ["surrogate"]),
        ("the", {"output_value": "tokens"}, ["output_value", "token_embeddings", "'tokens'"]),
        ("the", {"output_value": ["x"]}, ["output_value", "['x']"]),
        ("the", {"precision": "int4"}, ["precision", "ubinary", "'int4'"]),
        ("the", {"precision": None}, ["precision", "None"]),
        ("the", {"precision": "int8"}, ["int8", "ranges", "single"]),
        (["the"], {"precision": "uint8"}, ["uint8", "ranges", "single"]),
        (
            "the",
            {"precision": "int8", "output_value": "token_embeddings"},
            ["precision", "float32", "token_embeddings", "'int8'"],
        ),
        ("the", {"precision": "binary", "output_value": None}, ["precision", "'binary'"]),
        ("the", {"truncate_dim": 0}, ["truncate_dim", "1 to 32", "0"]),
        ("the", {"truncate_dim": 33}, ["truncate_dim", "1 to 32", "33"]),
        ("the", {"truncate_dim": "8"}, ["truncate_dim", "'8'"]),
        ("the", {"max_length": 0}, ["max_length", "0"]),
        ("the", {"max_length": 2}, ["max_length", "2 special tokens", "2"]),
        ("the", {"max_length": 65}, ["max_length", "64", "65"]),
        ("the", {"max_length": True}, ["max_length", "True"]),
        ("the", {"max_length": 8.0}, ["max_length", "8.0"]),
        ("the", {"truncation_side": "middle"}, ["truncation_side", "left", "'middle'"]),
        ([], {"truncation_side": "middle"}, ["truncation_side", "'middle'"]),
    ],
)
def test_wrong_arguments_of_encode_are_refused(
    engine: Engine, inputs: Any, options: dict[str, Any], words: list[str]
) -> None:
    found, message = refusal(lambda: engine.encode(inputs, **options))
    assert found is InputError, message
    for word in words:
        assert word in message
    assert engine.encode("the cat").shape == (HIDDEN_SIZE,)  # and the engine goes on


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("encode_query", (None,), ["inputs", "None"]),
        ("encode_document", (["the", 1],), ["text 1", "int"]),
        ("tokenize", (None,), ["inputs", "None"]),
        ("tokenize", (["a\udfff"],), ["text 0", "surrogate"]),
        ("token_count", (b"the",), ["inputs", "bytes"]),
        ("token_count", (["the", None],), ["text 1", "NoneType"]),
        ("similarity", (np.zeros((1, 3)), np.zeros((1, 4))), ["one width", "(1, 3)"]),
        ("similarity", ("the", "cat"), ["numbers"]),
    ],
)
def test_wrong_arguments_of_other_calls_are_refused(
    engine: Engine, name: str, arguments: tuple[Any, ...], words: list[str]
) -> None:
    found, message = refusal(lambda: getattr(engine, name)(*arguments))
    assert found is InputError, message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ("the cat", {}, ["inputs", "iterable", "one str"]),
        (None, {}, ["inputs", "iterable", "NoneType"]),
        (5, {}, ["inputs", "iterable", "int"]),
        (b"the", {}, ["inputs", "one bytes"]),
        (["the", 3], {}, ["text 1", "int"]),
        (["the"] * 5 + [None], {"chunk_size": 2}, ["from text 4", "text 1", "NoneType"]),
        (["the"], {"chunk_size": 0}, ["chunk_size", "at least 1", "0"]),
        (["the"], {"chunk_size": True}, ["chunk_size", "True"]),
        (["the"], {"chunk_size": None}, ["chunk_size", "None"]),
        (["the"], {"precision": "int8"}, ["precision", "ubinary", "ranges"]),
    ],
)
def test_wrong_arguments_of_a_stream_are_refused(
    engine: Engine, inputs: Any, options: dict[str, Any], words: list[str]
) -> None:
    found, message = refusal(lambda: list(engine.encode_stream(inputs, **options)))
    assert found is InputError, message
    for word in words:
        assert word in message


# ---- right answers -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "inputs",
    [
        ["the cat", "a dog"],
        ("the cat", "a dog"),
        (text for text in ("the cat", "a dog")),
        {"the cat": 1, "a dog": 2}.keys(),
        iter(["the cat", "a dog"]),
        map(str, ["the cat", "a dog"]),
        np.array(["the cat", "a dog"]),
        np.array(["the cat", "a dog"], object),
        np.array(["the cat", "a dog"]).tolist(),
        [np.str_("the cat"), "a dog"],
    ],
)
def test_any_iterable_of_texts_is_taken(engine: Engine, inputs: Any) -> None:
    rows = engine.encode(inputs)
    assert rows.shape == (2, HIDDEN_SIZE)
    assert np.array_equal(rows[0], engine.encode("the cat"))
    assert np.array_equal(rows[1], engine.encode("a dog"))


@pytest.mark.parametrize("inputs", ["the cat", np.array("the cat"), np.str_("the cat")])
def test_one_text_gives_one_vector(engine: Engine, inputs: Any) -> None:
    assert engine.encode(inputs).shape == (HIDDEN_SIZE,)


def test_a_set_is_taken_in_its_own_order(engine: Engine) -> None:
    texts = {"the cat", "a dog", "paper"}
    assert np.array_equal(engine.encode(texts), engine.encode(list(texts)))


@pytest.mark.parametrize("inputs", [[], (), np.array([], str), iter([]), set()])
@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({}, (0, HIDDEN_SIZE), "float32"),
        ({"truncate_dim": 9}, (0, 9), "float32"),
        ({"normalize_embeddings": True}, (0, HIDDEN_SIZE), "float32"),
        ({"precision": "int8"}, (0, HIDDEN_SIZE), "int8"),
        ({"precision": "uint8"}, (0, HIDDEN_SIZE), "uint8"),
        ({"precision": "binary"}, (0, 4), "int8"),
        ({"precision": "ubinary", "truncate_dim": 9}, (0, 2), "uint8"),
    ],
)
def test_no_texts_give_no_rows(
    engine: Engine, inputs: Any, options: dict[str, Any], shape: tuple[int, ...], dtype: str
) -> None:
    rows = engine.encode(inputs, **options)
    assert rows.shape == shape
    assert rows.dtype == dtype


def test_no_texts_give_no_items(engine: Engine) -> None:
    assert engine.encode([], output_value="token_embeddings") == []
    assert engine.encode([], output_value=None) == []
    assert engine.tokenize([]) == []
    assert engine.token_count([]) == []
    assert list(engine.encode_stream([])) == []


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "\t\n", "\u200b", "🙂", "ж" * 90, "[PAD]", "[SEP]"]
)
def test_odd_texts_have_finite_vectors(engine: Engine, text: str) -> None:
    assert np.isfinite(engine.encode(text)).all()


def test_the_old_name_of_inputs_is_taken_with_a_warning(engine: Engine) -> None:
    with pytest.warns(DeprecationWarning, match="inputs="):
        rows = engine.encode(sentences=["the cat"])
    assert np.array_equal(rows, engine.encode(["the cat"]))


def test_an_unknown_keyword_is_a_type_error(engine: Engine) -> None:
    for name in ("encode", "encode_query", "encode_document"):
        with pytest.raises(TypeError, match="normalise"):
            getattr(engine, name)("the", normalise=True)


# ---- long texts, little memory, a closed engine ------------------------------------------------
LONG = "the cat " * 200


def test_a_long_text_is_refused_where_truncation_is_an_error(good: Path) -> None:
    with Engine.from_pretrained(good, truncation="error") as engine:
        with pytest.raises(TruncationError, match=r"text 1 .* max_length = 64 tokens, got 402"):
            engine.encode(["the", LONG])
        assert issubclass(TruncationError, InputError)
        assert engine.token_count(LONG) == 402  # counting cuts nothing
        assert engine.encode("the cat").shape == (HIDDEN_SIZE,)


def test_a_long_text_is_cut_with_one_warning_and_counted(good: Path) -> None:
    with Engine.from_pretrained(good) as engine:
        with pytest.warns(TruncationWarning, match="1 of 2 texts had more than max_length = 64"):
            engine.encode(["the", LONG])
        engine.encode([LONG, LONG])  # no second warning: it would be an error here
        assert engine.truncated_texts == 3
    with Engine.from_pretrained(good, truncation="silent") as engine:
        engine.encode(LONG)
        assert engine.truncated_texts == 1


def test_memory_that_is_enough_for_one_token_but_not_for_a_text_is_said_so(good: Path) -> None:
    found, message = refusal(
        lambda: Engine.from_pretrained(good, device="numpy", memory_limit=1).encode("the")
    )
    assert found is MemoryLimitError
    least = int(message.split("at least ")[1].split()[0])
    with Engine.from_pretrained(good, device="numpy", memory_limit=least) as engine:
        long = " ".join(["cat"] * 60)
        with pytest.raises(MemoryLimitError, match=r"text 1 of 62 tokens .*memory_limit = \d+"):
            engine.encode(["the", long])


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.encode("the cat"),
        lambda engine: engine.encode([]),
        lambda engine: engine.encode_query("the cat"),
        lambda engine: engine.encode_document(["the cat"]),
        lambda engine: list(engine.encode_stream(["the cat"])),
        lambda engine: engine.tokenize("the cat"),
        lambda engine: engine.token_count("the cat"),
    ],
)
def test_a_closed_engine_says_that_it_is_closed(
    good: Path, call: Callable[[Engine], object]
) -> None:
    engine = Engine.from_pretrained(good)
    engine.encode("the cat")
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError, match="was closed: load it again"):
        call(engine)


def test_a_closed_engine_lets_go_of_its_files_and_threads(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    threads = set(threading.enumerate())
    engine = Engine.from_pretrained(folder)
    engine.encode(["the cat", "a dog"] * 50)
    engine.close()
    assert set(threading.enumerate()) == threads
    del engine
    gc.collect()
    assert mapped(folder) == []


def test_every_error_is_of_the_tree_and_of_a_builtin_kind() -> None:
    from minibert import errors

    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, MinibertError) for kind in kinds)
    builtin = (ValueError, OSError, RuntimeError, MemoryError, ImportError)
    assert all(issubclass(kind, builtin) for kind in kinds if kind is not MinibertError)
    assert issubclass(ConfigError, CheckpointError)
