"""Arguments that a person may hand over by mistake: each is a clear error, and nothing else."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.errors import DeviceOptionError, InputError, MemoryLimitError, MinibertError
from tests.checkpoints import HIDDEN_SIZE, MAX_LENGTH
from tests.refusals import refusal

pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"device": "tpu"}, DeviceOptionError, ["device", "auto", "cpu", "'tpu'"]),
        ({"device": None}, DeviceOptionError, ["device", "None"]),
        ({"device": ["cpu"]}, DeviceOptionError, ["device", "['cpu']"]),
        (
            {"device": "numpy", "dtype": "float8"},
            DeviceOptionError,
            ["dtype", "float32", "'float8'"],
        ),
        ({"matmul_precision": "low"}, DeviceOptionError, ["matmul_precision", "highest", "'low'"]),
        ({"threads": 0}, DeviceOptionError, ["threads", "at least 1", "0"]),
        ({"threads": "2"}, DeviceOptionError, ["threads", "'2'"]),
        ({"threads": True}, DeviceOptionError, ["threads", "True"]),
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


def test_numpys_integers_are_numbers(good: Path) -> None:
    options: dict[str, Any] = {
        "max_length": 9,
        "threads": 1,
        "max_batch_tokens": 64,
        "memory_limit": 10**9,
        "truncate_dim": 8,
        "truncation": "silent",
    }
    numpys = {
        name: np.int64(value) if isinstance(value, int) else value
        for name, value in options.items()
    }
    texts = ["the cat " * 20, "a dog"]
    with Engine.from_pretrained(good, **options) as plain:
        with Engine.from_pretrained(good, **numpys) as engine:
            assert engine.max_length == 9
            found = engine.encode(texts, batch_size=np.int64(1), max_length=np.int32(8))
            assert np.array_equal(found, plain.encode(texts, batch_size=1, max_length=8))


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
        ({"the", "cat"}, {}, ["inputs", "order", "set"]),
        (np.array(3), {}, ["inputs", "int"]),
        (np.array(1.5), {}, ["inputs", "float"]),
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
        (["fine"], {"prompt": "ab\udc00"}, ["prompt must be valid", "character 2"]),
        (["the", "ab\ud800"], {"prompt": "query: "}, ["text 1 must", "character 2"]),
        (["the", "ab\ud800"], {"prompt_name": "query"}, ["text 1 must", "character 2"]),
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
        ({"the": 1}, {}, ["inputs", "one dict"]),
        ({"the", "cat"}, {}, ["inputs", "order", "set"]),
        (np.array("the"), {}, ["inputs", "iterable", "one ndarray"]),
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
