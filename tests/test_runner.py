"""Batches over streams: splits, failures and forks change no byte and lose no text."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from minibert import Engine
from minibert.config import EncoderConfig
from minibert.errors import EngineClosedError, InputError
from minibert.ops.reference import ReferenceOps
from minibert.runner import token_types
from tests.checkpoints import write_json
from tests.conftest import TinyModel

TEXTS = [f"the cat {'sat ' * (i % 12)}" for i in range(20)]


def test_a_batch_that_does_not_fit_is_split(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.from_pretrained(tiny("bert"), device="numpy") as engine:
        expected = engine.encode(TEXTS).tobytes()
        plain, sizes = ReferenceOps.forward, []

        def full_at_three(self: ReferenceOps, batch: Any, *rest: Any, **options: Any) -> Any:
            sizes.append(batch.num_seqs)
            if batch.num_seqs > 3:
                raise MemoryError
            return plain(self, batch, *rest, **options)

        monkeypatch.setattr(ReferenceOps, "forward", full_at_three)
        assert engine.encode(TEXTS).tobytes() == expected
        assert max(sizes) == 20
        assert sum(size for size in sizes if size <= 3) == 20


def test_one_text_that_does_not_fit_is_an_error_and_the_engine_goes_on(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    with Engine.from_pretrained(tiny("bert"), device="numpy") as engine:
        expected = engine.encode(TEXTS).tobytes()
        with monkeypatch.context() as patch:
            patch.setattr(ReferenceOps, "forward", full)
            with pytest.raises(MemoryError):
                engine.encode(TEXTS)
        assert engine.encode(TEXTS).tobytes() == expected


def test_a_failure_in_a_worker_reaches_the_caller(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceOps, "num_streams", 3)
    plain, calls = ReferenceOps.forward, []

    def fails_later(self: ReferenceOps, batch: Any, *rest: Any, **options: Any) -> Any:
        calls.append(batch.num_seqs)
        if len(calls) == 4:
            raise RuntimeError("the fourth batch")
        return plain(self, batch, *rest, **options)

    with Engine.from_pretrained(tiny("bert"), device="numpy") as engine:
        expected = engine.encode(TEXTS, batch_size=2).tobytes()
        with monkeypatch.context() as patch:
            patch.setattr(ReferenceOps, "forward", fails_later)
            with pytest.raises(RuntimeError, match="the fourth batch"):
                engine.encode(TEXTS, batch_size=2)
        assert engine.encode(TEXTS, batch_size=2).tobytes() == expected


def test_closing_under_a_running_call_is_said_by_name(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.from_pretrained(tiny("bert"), device="numpy")
    plain, started = ReferenceOps.forward, threading.Event()

    def slowly(self: ReferenceOps, *rest: Any, **options: Any) -> Any:
        started.set()
        time.sleep(0.05)
        return plain(self, *rest, **options)

    monkeypatch.setattr(ReferenceOps, "forward", slowly)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(engine.encode, TEXTS, batch_size=1)
        started.wait()
        engine.close()
        with pytest.raises(EngineClosedError, match="was closed"):
            call.result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_engine_goes_on_and_closes(tiny: TinyModel) -> None:
    """As Ctrl-C in an interactive session, which keeps the exception and all that hangs on it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    engine = Engine.from_pretrained(tiny("bert"))
    expected = engine.encode(["the cat"]).tobytes()
    begin = time.perf_counter()
    for _ in range(10):
        engine.encode(["the cat"])
    duration = (time.perf_counter() - begin) / 10
    kept = []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(1000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + i / 1000 * duration)
                engine.encode(["the cat"])
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt as error:
                kept.append(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(kept) > 100
    assert engine.encode(["the cat"]).tobytes() == expected
    for step in (logging.getLogger, engine.close):  # no lock is lost, not even the process's own
        other = threading.Thread(target=step, daemon=True)
        other.start()
        other.join(60)
        assert not other.is_alive(), step


def test_encoding_takes_no_lock_of_the_logging_module(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        engine.encode("the cat")
        with ThreadPoolExecutor(1) as pool, logging._lock:  # type: ignore[attr-defined]
            other = pool.submit(engine.encode, "the cat")
            assert other.exception(20) is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same_bytes(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        expected = engine.encode(TEXTS, batch_size=2).tobytes()
        child = os.fork()
        if child == 0:
            same = engine.encode(TEXTS, batch_size=2).tobytes() == expected
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- token types ------------------------------------------------------------------------------
def types(*values: int) -> Any:
    return [np.array(values, np.int32)]


@pytest.mark.parametrize(
    ("family", "size", "found", "expected"),
    [
        ("bert", 2, (0, 1), (0, 1)),
        ("bert", 1, (0, 0), (0, 0)),
        ("distilbert", 0, (0, 1), None),
        # transformers' tokenizers of these families return no token types: the model takes 0.
        ("roberta", 1, (0, 1), None),
        ("xlm-roberta", 1, (0, 1), None),
        ("camembert", 1, (0, 0), None),
        ("roberta", 2, (0, 1), (0, 1)),
    ],
)
def test_token_types_are_those_of_transformers(
    tiny: TinyModel, family: str, size: int, found: Any, expected: Any
) -> None:
    overrides = {} if family == "distilbert" else {"type_vocab_size": size}
    config = EncoderConfig.from_file(tiny(family, **overrides) / "config.json")
    assert config.type_vocab_size == size
    used = token_types(config, types(*found))
    assert used is None if expected is None else np.array_equal(used, types(*expected))


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_token_type_that_the_model_lacks_is_named(
    tiny: TinyModel, tmp_path: Path, device: str
) -> None:
    folder = Path(shutil.copytree(tiny("bert", type_vocab_size=1), tmp_path / "model"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A:1 [SEP]", None, ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    # BertTokenizer, which stands for a class that no file names, has types of its own.
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"})
    with (
        Engine.from_pretrained(folder, device=device) as engine,
        pytest.raises(
            InputError, match="text 0: token_type_ids must be from 0 to 0, got 1: the to"
        ),
    ):
        engine.encode("the cat")


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_token_that_the_model_lacks_is_named(
    tiny: TinyModel, tmp_path: Path, device: str
) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "model"))
    size = EncoderConfig.from_file(folder / "config.json").vocab_size
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save(str(folder / "tokenizer.json"))
    message = f"text 1: input_ids must be from 0 to {size - 1}, got {size}: the tokenizer and"
    with (
        Engine.from_pretrained(folder, device=device) as engine,
        pytest.raises(InputError, match=message),
    ):
        engine.encode(["the cat", "the zebra"])
