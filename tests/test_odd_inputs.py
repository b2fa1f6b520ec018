"""Unusual input that has a right answer, and engines at the end of their means or their life."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine, quantize_embeddings
from minibert.errors import (
    CheckpointError,
    ConfigError,
    EngineClosedError,
    InputError,
    MemoryLimitError,
    MinibertError,
    TruncationError,
    TruncationWarning,
)
from tests.checkpoints import HIDDEN_SIZE
from tests.refusals import mapped, refusal

LONG = "the cat " * 200

pytestmark = pytest.mark.usefixtures("quick_collection")


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


def test_an_error_of_the_callers_generator_is_the_callers(engine: Engine) -> None:
    for call in (engine.encode, lambda texts: list(engine.encode_stream(texts))):
        with pytest.raises(TypeError, match=r"has no len\(\)"):
            call(len(number) for number in [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("inputs", [[], (), np.array([], str), iter([])])
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


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.encode(["the cat", LONG], precision="int8"),
        lambda engine: engine.encode_query(sentences=["the cat", LONG]),
        lambda engine: list(engine.encode_stream(["the cat", LONG])),
        lambda engine: quantize_embeddings(np.eye(9), "int8"),
    ],
)
def test_warnings_are_of_the_line_that_called(good: Path, call: Callable[[Engine], object]) -> None:
    with Engine.from_pretrained(good) as engine, pytest.warns() as warned:
        call(engine)
    assert {warning.filename for warning in warned} == {__file__}


def test_an_unknown_keyword_is_a_type_error(engine: Engine) -> None:
    for name in ("encode", "encode_query", "encode_document", "encode_stream"):
        with pytest.raises(TypeError, match="normalise"):
            getattr(engine, name)("the", normalise=True)


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
