"""`Engine.encode` against SentenceTransformer.encode really running, on tiny models."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.errors import EngineClosedError, InputError, TruncationError, TruncationWarning
from minibert.ops.reference import ReferenceOps
from tests.checkpoints import edit_json, write_json
from tests.conftest import TinyModel

TEXTS = [
    "the cat sat on the mat",
    "",
    "a",
    "bread stays soft in a paper bag and the dog sat on ice",
    "moon sun lake walk safe qzx",
    "the cat sat on the mat",
]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OLD_KEYS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
# float32 programs that sum in another order: 48 terms of size 1 or so, three layers.
CLOSE = 5e-6


def save_sentence_model(folder: Path, encoder: Path, *modules: Any, **options: Any) -> Any:
    """A SentenceTransformer over a tiny encoder, saved by sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Transformer
    from transformers import PreTrainedTokenizerFast

    with_tokenizer = folder.parent / f"{folder.name}-encoder"
    shutil.copytree(encoder, with_tokenizer)
    PreTrainedTokenizerFast(
        tokenizer_file=str(encoder / "tokenizer.json"),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=64,
    ).save_pretrained(with_tokenizer)
    theirs = SentenceTransformer(
        modules=[Transformer(str(with_tokenizer)), *modules], device="cpu", **options
    )
    theirs.save(str(folder))
    return theirs


@pytest.fixture
def minutes_of_warnings() -> Any:
    """transformers and sentence-transformers may warn about their own matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("minutes_of_warnings")
@pytest.mark.parametrize("modes", [*MODES, ("cls", "mean"), ("max", "weightedmean", "lasttoken")])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling_equals_sentence_transformers(
    tiny: TinyModel, tmp_path: Path, modes: Any, include_prompt: bool
) -> None:
    from sentence_transformers.models import Pooling

    pooling = Pooling(48, pooling_mode=modes, include_prompt=include_prompt)
    theirs = save_sentence_model(tmp_path / "m", tiny("bert"), pooling)
    with Engine.from_pretrained(tmp_path / "m") as engine:
        for prompt in (None, "walk the dog"):
            ours = engine.encode(TEXTS, prompt=prompt)
            expected = theirs.encode(TEXTS, prompt=prompt)
            assert ours.shape == expected.shape
            assert np.abs(ours - expected).max() <= CLOSE * max(1.0, np.abs(expected).max())


@pytest.mark.usefixtures("minutes_of_warnings")
@pytest.mark.parametrize("modes", [*MODES, ("cls", "max", "mean")])
def test_both_generations_of_configs_give_identical_bytes(
    tiny: TinyModel, tmp_path: Path, modes: Any
) -> None:
    from sentence_transformers.models import Normalize, Pooling

    new = tmp_path / "new"
    save_sentence_model(new, tiny("bert"), Pooling(48, pooling_mode=modes), Normalize())
    old = tmp_path / "old"
    shutil.copytree(new, old)
    named = [modes] if isinstance(modes, str) else list(modes)
    values: dict[str, Any] = {"word_embedding_dimension": 48}
    values |= {f"pooling_mode_{key}": mode in named for mode, key in OLD_KEYS.items()}
    (old / "1_Pooling" / "config.json").write_text(json.dumps(values))
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (old / "modules.json").write_text(json.dumps(modules))
    (old / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 64, "do_lower_case": False})
    )
    shutil.rmtree(old / "2_Normalize", ignore_errors=True)
    with Engine.from_pretrained(new) as a, Engine.from_pretrained(old) as b:
        assert a.max_length == b.max_length == 64
        assert a.encode(TEXTS).tobytes() == b.encode(TEXTS).tobytes()


@pytest.mark.usefixtures("minutes_of_warnings")
@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "GELU", "SiLU"])
@pytest.mark.parametrize(
    ("out_features", "bias", "residual"), [(20, True, False), (48, False, True), (20, True, True)]
)
def test_dense_modules_equal_sentence_transformers(
    tiny: TinyModel, tmp_path: Path, activation: str, out_features: int, bias: bool, residual: bool
) -> None:
    import torch
    from sentence_transformers.models import Dense, Normalize, Pooling

    torch.manual_seed(3)
    dense = Dense(
        48,
        out_features,
        bias=bias,
        activation_function=getattr(torch.nn, activation)(),
        use_residual=residual,
    )
    theirs = save_sentence_model(tmp_path / "m", tiny("bert"), Pooling(48), dense, Normalize())
    with Engine.from_pretrained(tmp_path / "m") as engine:
        assert engine.dimension == out_features
        assert np.abs(engine.encode(TEXTS) - theirs.encode(TEXTS)).max() <= CLOSE


@pytest.mark.usefixtures("minutes_of_warnings")
def test_prompts_dimensions_and_similarity_come_from_the_model(
    tiny: TinyModel, tmp_path: Path
) -> None:
    from sentence_transformers.models import Normalize, Pooling

    theirs = save_sentence_model(
        tmp_path / "m",
        tiny("bert"),
        Pooling(48),
        Normalize(),
        prompts={"query": "the sun ", "passage": "the moon "},
        default_prompt_name="passage",
        similarity_fn_name="euclidean",
        truncate_dim=32,
    )
    with Engine.from_pretrained(tmp_path / "m") as engine:
        assert engine.dimension == 32
        for call in ("encode", "encode_query", "encode_document"):
            ours, expected = getattr(engine, call)(TEXTS), getattr(theirs, call)(TEXTS)
            assert np.abs(ours - expected).max() <= CLOSE, call
        named = engine.encode(TEXTS, prompt_name="query", truncate_dim=10)
        expected = theirs.encode(TEXTS, prompt_name="query", truncate_dim=10)
        assert named.shape == (6, 10)
        assert np.abs(named - expected).max() <= CLOSE
        both = engine.encode(TEXTS, normalize_embeddings=True, truncate_dim=10)
        expected = theirs.encode(TEXTS, normalize_embeddings=True, truncate_dim=10)
        assert np.abs(both - expected).max() <= CLOSE
        scores = engine.similarity(named, both)
        assert np.abs(scores - theirs.similarity(named, both).numpy()).max() <= CLOSE


@pytest.mark.usefixtures("minutes_of_warnings")
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precision_is_bit_equal_to_theirs_on_the_same_vectors(
    tiny: TinyModel, precision: Any
) -> None:
    from sentence_transformers.util import quantize_embeddings

    with Engine.from_pretrained(tiny("bert")) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = engine.encode(TEXTS, precision=precision)
        expected = quantize_embeddings(engine.encode(TEXTS), precision)
    assert ours.dtype == expected.dtype
    assert ours.tobytes() == expected.tobytes()


def test_one_text_gives_one_vector_and_a_list_gives_rows(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        assert engine.encode("a cat").shape == (48,)
        assert engine.encode(["a cat"]).shape == (1, 48)
        assert engine.encode([]).shape == (0, 48)
        assert engine.encode(np.array(["a cat", "a dog"])).shape == (2, 48)
        assert engine.encode(("a cat", "a dog")).dtype == np.float32
        assert engine.encode(text for text in ["a", "b"]).shape == (2, 48)


def test_token_embeddings_and_everything(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        states = engine.encode(TEXTS, output_value="token_embeddings")
        assert [len(s) for s in states] == engine.token_count(TEXTS)
        everything = engine.encode(TEXTS, output_value=None)
        for item, state, row in zip(everything, states, engine.encode(TEXTS), strict=True):
            assert item["token_embeddings"].tobytes() == state.tobytes()
            assert item["sentence_embedding"].tobytes() == row.tobytes()
            assert item["input_ids"].size == len(state)
        one = engine.encode(TEXTS[0], output_value="token_embeddings")
        assert one.tobytes() == states[0].tobytes()


def test_a_text_gives_the_same_bytes_alone_in_any_batch_and_in_any_order(tiny: TinyModel) -> None:
    rng = np.random.default_rng(0)
    words = "the cat dog sat on mat and bread soft paper ice lake qzx".split()
    texts = [" ".join(rng.choice(words, int(n))) for n in rng.integers(0, 50, 40)]
    with Engine.from_pretrained(tiny("bert")) as engine:
        together = engine.encode(texts)
        order = rng.permutation(len(texts))
        assert engine.encode([texts[i] for i in order]).tobytes() == together[order].tobytes()
        for batch_size in (1, 2, 7):
            assert engine.encode(texts, batch_size=batch_size).tobytes() == together.tobytes()
        alone = np.stack([engine.encode(text) for text in texts])
        assert alone.tobytes() == together.tobytes()
    for max_batch_tokens in (1, 50, 333):
        with Engine.from_pretrained(tiny("bert"), max_batch_tokens=max_batch_tokens) as engine:
            assert engine.encode(texts).tobytes() == together.tobytes()


def test_many_threads_share_one_engine(tiny: TinyModel) -> None:
    texts = [f"the cat sat on ice {'lake ' * (i % 20)}" for i in range(30)]
    with Engine.from_pretrained(tiny("bert"), truncation="silent") as engine:
        expected = {n: engine.encode(texts, max_length=n).tobytes() for n in (5, 9, 30)}
        work = list(itertools.islice(itertools.cycle(expected), 48))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: engine.encode(texts, max_length=n).tobytes(), work))
        assert [expected[n] for n in work] == found


def test_a_stream_equals_one_call(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        texts = (f"the cat {'sat ' * i}" for i in range(25))
        chunks = list(engine.encode_stream(texts, chunk_size=7, normalize_embeddings=True))
        assert [len(chunk) for chunk in chunks] == [7, 7, 7, 4]
        whole = engine.encode(
            [f"the cat {'sat ' * i}" for i in range(25)], normalize_embeddings=True
        )
        assert np.concatenate(chunks).tobytes() == whole.tobytes()
        assert list(engine.encode_stream([])) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "ranges would differ"),
        ({"precision": "int4"}, "precision must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"inputs": "the cat"}, "inputs must be an iterable"),
        ({"prompt_name": "passage"}, "prompt_name must be"),
        ({"prompt": "\ud800"}, "prompt must be valid Unicode"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"truncate_dim": 0}, "truncate_dim must be"),
        ({"max_length": 1}, "max_length must"),
        ({"truncation_side": "up"}, "truncation_side must be"),
    ],
)
def test_a_stream_refuses_its_arguments_before_it_is_read(
    tiny: TinyModel, options: dict[str, Any], message: str
) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        with pytest.raises(InputError, match=message):
            engine.encode_stream(**{"inputs": iter(["a"]), **options})
        stream = engine.encode_stream(iter(["a"]), show_progress_bar=False)
    with pytest.raises(EngineClosedError):
        next(stream)
    with pytest.raises(EngineClosedError):
        engine.encode_stream(["a"])


@pytest.mark.parametrize("call", ["encode_query", "encode_document"])
def test_queries_and_documents_take_every_argument_of_encode(tiny: TinyModel, call: str) -> None:
    own, plain = (inspect.signature(getattr(Engine, name)) for name in (call, "encode"))
    assert own.parameters == plain.parameters
    from sentence_transformers import SentenceTransformer

    theirs = inspect.signature(getattr(SentenceTransformer, call))
    positional = [*theirs.parameters][:8]  # self, inputs, ... precision
    assert [*own.parameters][:8] == positional
    with Engine.from_pretrained(tiny("bert"), prompts={"query": "sun ", "task": "ice "}) as engine:
        encode = getattr(engine, call)
        rows = encode(TEXTS, "task", None, 2, False, "sentence_embedding", "float32")
        assert np.array_equal(rows, engine.encode(TEXTS, prompt="ice "))
        with pytest.warns(DeprecationWarning, match="inputs="):
            rows = encode(sentences=TEXTS, prompt="")
        assert np.array_equal(rows, engine.encode(TEXTS))


def test_truncation_is_counted_and_said_once(tiny: TinyModel) -> None:
    long = "cat " * 200
    with Engine.from_pretrained(tiny("bert")) as engine:
        with pytest.warns(TruncationWarning, match="1 of 2 texts had more than max_length = 70"):
            engine.encode([long, "a"])
        engine.encode([long, long])  # no second warning: warnings are errors here
        assert engine.truncated_texts == 3
        assert "3 texts cut" in engine.explain()
    with Engine.from_pretrained(tiny("bert"), truncation="error") as engine:
        with pytest.raises(TruncationError, match="text 1 must have at most max_length = 70"):
            engine.encode(["a", long])
    with Engine.from_pretrained(tiny("bert"), truncation="silent", max_length=9) as engine:
        assert engine.encode(long, output_value="token_embeddings").shape == (9, 48)
        right = engine.encode("cat dog sun moon ice", max_length=4)
        left = engine.encode("cat dog sun moon ice", max_length=4, truncation_side="left")
        assert np.array_equal(right, engine.encode("cat dog"))
        assert np.array_equal(left, engine.encode("moon ice"))


def test_memory_limit_makes_batches_smaller_and_changes_no_byte(tiny: TinyModel) -> None:
    texts = [f"the cat {'sat ' * (i % 50)}" for i in range(60)]
    with Engine.from_pretrained(tiny("bert")) as engine:
        expected = engine.encode(texts).tobytes()
    with Engine.from_pretrained(tiny("bert"), memory_limit="6MB") as engine:
        assert engine.encode(texts).tobytes() == expected
        assert "limit 6.0 MB" in engine.explain()


def test_a_text_above_the_budget_counts_in_what_is_predicted(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert"), device="numpy", max_batch_tokens=8) as engine:
        grows = engine.memory_bound(["cat " * 60]) - engine.memory_bound(["cat"])
        scratch = engine._runner.scratch_bytes
        assert grows >= scratch(62, 62, 62) - scratch(8, 8, 8) > 0
        longest = scratch(engine.max_length, engine.max_length, engine.max_length)
        assert f"scratch at most {longest / 1e6:.1f} MB" in engine.explain()


def test_a_call_does_not_wait_for_workers_that_are_busy_with_another(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceOps, "num_streams", 2)
    release = threading.Event()
    with Engine.from_pretrained(tiny("bert"), device="numpy", max_batch_tokens=8) as engine:
        engine._runner._pool().submit(release.wait, 60.0)  # takes the only worker
        with ThreadPoolExecutor(1) as caller:
            try:
                rows = caller.submit(engine.encode, TEXTS).result(timeout=30)
            finally:
                release.set()
        assert np.array_equal(rows, engine.encode(TEXTS))


@pytest.mark.usefixtures("minutes_of_warnings")
@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_model_that_cuts_on_the_left_equals_sentence_transformers(
    tiny: TinyModel, tmp_path: Path, include_prompt: bool
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling

    folder = tmp_path / "m"
    save_sentence_model(folder, tiny("bert"), Pooling(48, include_prompt=include_prompt))
    edit_json(folder / "tokenizer_config.json", truncation_side="left")
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = ["dog " * 60 + "cat sat on the mat " * 10, *TEXTS]
    options: dict[str, Any] = {"truncation": "silent"}
    with Engine.from_pretrained(folder, **options) as engine:
        assert "cut on the left (truncation_side of tokenizer_config.json)" in engine.explain()
        for prompt in (None, "walk "):
            expected = theirs.encode(texts, prompt=prompt)
            assert np.abs(engine.encode(texts, prompt=prompt) - expected).max() <= CLOSE
        left = engine.encode(texts)
        right = engine.encode(texts, truncation_side="right")
    with Engine.from_pretrained(folder, truncation_side="right", **options) as engine:
        assert "cut on the right (asked for)" in engine.explain()
        assert np.array_equal(engine.encode(texts), right)
        assert np.array_equal(engine.encode(texts, truncation_side="left"), left)
        assert not np.array_equal(left[0], right[0])


@pytest.mark.usefixtures("minutes_of_warnings")
@pytest.mark.parametrize("default", [None, "query", "document"])
def test_query_and_document_name_no_prompt_where_the_model_has_none(
    tiny: TinyModel, tmp_path: Path, default: str | None
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling

    folder = tmp_path / "m"
    save_sentence_model(folder, tiny("bert"), Pooling(48))
    prompts = {"task": "walk the dog "}
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": default},
    )
    theirs = SentenceTransformer(str(folder), device="cpu")
    with Engine.from_pretrained(folder) as engine:
        for name in ("query", "document", "task", None):
            expected = theirs.encode(TEXTS, prompt_name=name)
            assert np.abs(engine.encode(TEXTS, prompt_name=name) - expected).max() <= CLOSE
        for call in ("encode_query", "encode_document"):
            expected = getattr(theirs, call)(TEXTS)
            assert np.abs(getattr(engine, call)(TEXTS) - expected).max() <= CLOSE
        with pytest.raises(ValueError, match="'passage' not found"):
            theirs.encode(TEXTS, prompt_name="passage")
        with pytest.raises(InputError, match=r"one of \['document', 'query', 'task'\]"):
            engine.encode(TEXTS, prompt_name="passage")
    with Engine.from_pretrained(tiny("bert"), default_prompt_name="query") as engine:
        assert np.array_equal(engine.encode(TEXTS), engine.encode(TEXTS, prompt=""))


@pytest.mark.usefixtures("minutes_of_warnings")
def test_a_default_prompt_is_not_that_of_queries_and_documents(
    tiny: TinyModel, tmp_path: Path
) -> None:
    from sentence_transformers.models import Pooling

    theirs = save_sentence_model(tmp_path / "m", tiny("bert"), Pooling(48))
    theirs.prompts["task"] = "walk the dog "
    theirs.default_prompt_name = "task"
    prompts = {"task": "walk the dog "}
    with Engine.from_pretrained(
        tmp_path / "m", prompts=prompts, default_prompt_name="task"
    ) as engine:
        for call in ("encode", "encode_query", "encode_document"):
            ours, expected = getattr(engine, call)(TEXTS), getattr(theirs, call)(TEXTS)
            assert np.abs(ours - expected).max() <= CLOSE, call


def test_progress_bar_goes_to_standard_error(
    tiny: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        engine.encode(TEXTS, show_progress_bar=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "6/6" in err
        engine.encode(TEXTS)
        assert capsys.readouterr().err == ""
        logging.getLogger("minibert").setLevel(logging.INFO)
        try:
            engine.encode(TEXTS)
        finally:
            logging.getLogger("minibert").setLevel(logging.NOTSET)
        assert "6/6" in capsys.readouterr().err


def test_float64_stays_float64_when_vectors_are_normalised(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert"), device="numpy", dtype="float64") as engine:
        plain = engine.encode(TEXTS[:3])
        unit = engine.encode(TEXTS[:3], normalize_embeddings=True)
        scores = engine.similarity(unit, plain)
    assert plain.dtype == unit.dtype == scores.dtype == np.float64
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, rtol=1e-14, atol=0)


def test_a_closed_engine_says_so(tiny: TinyModel) -> None:
    engine = Engine.from_pretrained(tiny("bert"))
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError, match="was closed"):
        engine.encode("a")


def test_tokenize_gives_tokens_and_offsets(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("bert")) as engine:
        item = engine.tokenize("the catx")
        assert item["tokens"] == ["[CLS]", "the", "cat", "##x", "[SEP]"]
        assert item["offsets"][1:4] == [(0, 3), (4, 7), (7, 8)]
        assert engine.token_count("the catx") == 5


def test_explain_names_the_origin_of_each_decision(tiny: TinyModel) -> None:
    with Engine.from_pretrained(tiny("roberta")) as engine:
        report = engine.explain()
    assert "default: no modules.json" in report
    assert "positions   from 2, 68 of them" in report
    assert "max_position_embeddings of config.json" in report
