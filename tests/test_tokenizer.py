from __future__ import annotations

import json
import random
import shutil
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from minibert.errors import ConfigError, InputError, TokenizerError
from minibert.tokenizer import Text, TokenizedTexts, Tokenizer
from tests.checkpoints import FAMILIES, edit_json, save_tiny, vocabulary, write_json

NASTY = [
    "",
    " ",
    "a",
    "The CAT sat on the mat.",
    "Café naïve RÉSUMÉ é",
    "你好世界 the 世 cat",
    "שלום عالم",
    "🙂 the 👩‍👩‍👧 cat 🏳️‍🌈",
    "a\x00b\x07c\u200bd\ufeffe\u00ad",
    "\t\n\r\u00a0\u3000 the \u2028 cat",
    "[CLS] the [SEP] [MASK] [PAD] [UNK] x",
    "<s> the </s> <mask> <pad> <unk> x",
    "z" * 150,
    "the cat " * 100,
    "ﬁne ① Ⅷ ㎏ \uff46\uff55",
    "İstanbul ıİ ẞß Σς",
    "A\u0301 e\u0301 \u0301",
    "\U0001f600\U00010348\U000e0041",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_tiny(root / family, family) for family in FAMILIES}


@pytest.fixture
def bert(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["bert"], tmp_path / "bert"))


@pytest.fixture
def vocab_only(tmp_path: Path) -> Path:
    folder = tmp_path / "vocab"
    write_json(folder / "config.json", {"model_type": "bert"})
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    return folder


@cache
def reference(folder: Path, side: str = "right") -> Any:
    """transformers' AutoTokenizer; each folder is asked only in its final state."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, truncation_side=side)


def theirs(folder: Path, texts: list[Text], max_length: int, side: str = "right") -> list[Any]:
    """(ids, types) of transformers' AutoTokenizer, in batch form, unpadded."""
    parts: tuple[list[str], ...] = (
        tuple(map(list, zip(*texts, strict=True))) if isinstance(texts[0], tuple) else (texts,)  # type: ignore[assignment]
    )
    out = reference(folder, side)(
        *parts, truncation="longest_first", max_length=max_length, return_token_type_ids=True
    )
    return list(zip(out["input_ids"], out["token_type_ids"], strict=True))


def ours(folder: Path, texts: list[Text], max_length: int, side: str = "right") -> list[Any]:
    tokenized = Tokenizer.from_folder(folder).encode(
        texts,
        max_length=max_length,
        truncation_side=side,  # type: ignore[arg-type]
    )
    return pairs_of(tokenized)


def pairs_of(tokenized: TokenizedTexts) -> list[Any]:
    return [
        (ids.tolist(), types.tolist())
        for ids, types in zip(tokenized.input_ids, tokenized.token_type_ids, strict=True)
    ]


def random_texts(count: int, longest: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "cat", "unhappy", "running", "Xyz", "你", "é", ",", "soft"]
    return [" ".join(rng.choices(words, k=rng.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [3, 7, 16, 64])
def test_ids_are_those_of_transformers(
    folders: dict[str, Path], family: str, side: str, max_length: int
) -> None:
    texts: list[Text] = [*NASTY, *random_texts(60, 40, seed=max_length)]
    folder = folders[family]
    assert ours(folder, texts, max_length, side) == theirs(folder, texts, max_length, side)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [6, 7, 13])
def test_the_longer_text_of_a_pair_is_cut_first_as_in_transformers(
    folders: dict[str, Path], family: str, side: str, max_length: int
) -> None:
    first = random_texts(60, 14, seed=1)
    second = random_texts(60, 14, seed=2)
    texts: list[Text] = [*zip(first, second, strict=True), ("", ""), ("the", ""), ("", "the cat")]
    folder = folders[family]
    assert ours(folder, texts, max_length, side) == theirs(folder, texts, max_length, side)


def test_every_pair_of_lengths_is_cut_as_in_transformers(folders: dict[str, Path]) -> None:
    texts: list[Text] = [
        (" ".join(["cat"] * n), " ".join(["dog"] * m)) for n in range(12) for m in range(12)
    ]
    for max_length in range(4, 16):
        assert ours(folders["bert"], texts, max_length) == theirs(
            folders["bert"], texts, max_length
        ), max_length


def test_a_pair_has_two_types(folders: dict[str, Path]) -> None:
    ((_, types),) = ours(folders["bert"], [("the cat", "the dog sat")], 64)
    assert types == [0, 0, 0, 0, 1, 1, 1, 1]


def test_texts_and_pairs_may_stand_together(folders: dict[str, Path]) -> None:
    folder = folders["bert"]
    mixed: list[Text] = ["the cat sat on the mat", ("the cat sat", "the dog sat on the mat")]
    assert ours(folder, mixed, 64) == ours(folder, mixed[:1], 64) + ours(folder, mixed[1:], 64)
    # The text keeps max_length tokens of its own: a pair beside it takes nothing from it.
    assert ours(folder, mixed, 6) == ours(folder, mixed[:1], 6) + ours(folder, mixed[1:], 6)
    assert ours(folder, ["the cat", mixed[1]], 4)[0] == ours(folder, ["the cat"], 4)[0]


def test_tokens_before_cutting_are_counted(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(folders["bert"])
    tokenized = tokenizer.encode(["the cat", "the cat sat on", ""], max_length=4)
    assert tokenized.num_tokens_before.tolist() == [4, 6, 2]
    assert [ids.size for ids in tokenized.input_ids] == [4, 4, 2]
    assert tokenized.truncated.tolist() == [1]


def test_no_texts_give_no_ids(folders: dict[str, Path]) -> None:
    tokenized = Tokenizer.from_folder(folders["bert"]).encode([], max_length=8)
    assert tokenized.input_ids == []
    assert tokenized.truncated.size == 0


def test_more_texts_than_one_chunk_keep_their_order(folders: dict[str, Path]) -> None:
    texts: list[Text] = list(random_texts(2500, 5, seed=3))
    assert ours(folders["bert"], texts, 6) == theirs(folders["bert"], texts, 6)


def test_truncation_saved_in_the_file_has_no_effect(bert: Path) -> None:
    path = bert / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    values["padding"] = {
        "strategy": {"Fixed": 128},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    write_json(path, values)
    assert len(ours(bert, ["the cat sat on the mat"], 64)[0][0]) == 8


@pytest.mark.parametrize("side", ["right", "left"])
def test_vocab_txt_alone_gives_the_ids_of_transformers(vocab_only: Path, side: str) -> None:
    texts: list[Text] = [*NASTY, *random_texts(60, 40, seed=5)]
    assert ours(vocab_only, texts, 20, side) == theirs(vocab_only, texts, 20, side)
    couples: list[Text] = list(zip(random_texts(50, 9, 6), random_texts(50, 9, 7), strict=True))
    assert ours(vocab_only, couples, 12, side) == theirs(vocab_only, couples, 12, side)
    assert Tokenizer.from_folder(vocab_only).source == "vocab.txt"


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": True},
    ],
)
@pytest.mark.parametrize("source", ["vocab.txt", "tokenizer.json"])
def test_tokenizer_config_overrules_as_in_transformers(
    bert: Path, vocab_only: Path, settings: dict[str, Any], source: str
) -> None:
    folder = bert if source == "tokenizer.json" else vocab_only
    values = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, **settings}
    write_json(folder / "tokenizer_config.json", values)
    texts: list[Text] = list(NASTY)
    assert ours(folder, texts, 64) == theirs(folder, texts, 64)
    notes = Tokenizer.from_folder(folder).notes
    assert any("tokenizer_config.json" in note for note in notes) or source == "vocab.txt"


@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}])
def test_what_tokenizer_config_leaves_out_is_as_in_transformers(
    bert: Path, name: str | None, settings: dict[str, Any]
) -> None:
    cased = {"lowercase": False, "strip_accents": False, "handle_chinese_chars": False}
    edit_json(
        bert / "tokenizer.json", normalizer={"type": "BertNormalizer", "clean_text": True, **cased}
    )
    chosen = {} if name is None else {"tokenizer_class": name}
    write_json(bert / "tokenizer_config.json", {"model_max_length": 64, **chosen, **settings})
    texts: list[Text] = ["THE Cat", "Café", "你好世界 cat"]
    assert ours(bert, texts, 64) == theirs(bert, texts, 64)
    notes = Tokenizer.from_folder(bert).notes
    assert any("overrules" in note for note in notes) == (name != "PreTrainedTokenizerFast")


def test_a_token_that_stands_twice_has_its_last_id_as_in_transformers(vocab_only: Path) -> None:
    with (vocab_only / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("cat\n")
    assert ours(vocab_only, ["the cat"], 9) == theirs(vocab_only, ["the cat"], 9)


@pytest.mark.parametrize("token", [3, None, "[NONE]", {"content": "[NONE]"}])
def test_special_tokens_must_stand_in_vocab_txt(vocab_only: Path, token: object) -> None:
    write_json(vocab_only / "tokenizer_config.json", {"unk_token": token})
    with pytest.raises(TokenizerError, match=r"vocab\.txt must hold the unk_token"):
        Tokenizer.from_folder(vocab_only)


def test_vocab_txt_written_on_windows_is_read(vocab_only: Path, tmp_path: Path) -> None:
    other = tmp_path / "windows"
    other.mkdir()
    (other / "vocab.txt").write_bytes(
        (vocab_only / "vocab.txt").read_bytes().replace(b"\n", b"\r\n")
    )
    texts: list[Text] = list(NASTY)
    assert ours(other, texts, 64) == ours(vocab_only, texts, 64)


@pytest.mark.parametrize("prompt", ["query: ", "the cat", "", "unhappy", "é 你 "])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_as_long_as_sentence_transformers_counts(
    folders: dict[str, Path], family: str, prompt: str
) -> None:
    tokenizer = reference(folders[family])
    ids = tokenizer(prompt)["input_ids"]
    counted = len(ids) - (ids[-1] in tokenizer.all_special_ids)
    assert Tokenizer.from_folder(folders[family]).prompt_length(prompt) == counted


def test_lower_casing_comes_first_where_it_is_asked_for(bert: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    edit_json(bert / "tokenizer_config.json", **settings)
    cased = Tokenizer.from_folder(bert)
    lowered = Tokenizer.from_folder(bert, do_lower_case=True)
    plain = pairs_of(cased.encode(["the cat"], max_length=9))
    assert pairs_of(lowered.encode(["THE Cat"], max_length=9)) == plain
    assert pairs_of(cased.encode(["THE Cat"], max_length=9)) != plain
    assert any("lower-cased" in note for note in lowered.notes)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_that_of_transformers(folders: dict[str, Path], family: str) -> None:
    tokenizer = Tokenizer.from_folder(folders[family])
    known = reference(folders[family])
    ids = tokenizer.encode(["the cat sat on the mat"], max_length=32).input_ids[0].tolist()
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == known.decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )
    assert tokenizer.vocab_size == len(known)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["the", "a\ud800b"], ["text 101", "surrogate", "character 1"]),
        ([("the", "cat"), ("fine", "\udfff")], ["text 101", "surrogate", "character 0"]),
    ],
)
def test_a_lone_surrogate_is_named(
    folders: dict[str, Path], texts: list[Text], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer.from_folder(folders["bert"]).encode(texts, max_length=9, first_index=100)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 2}, ["max_length", "2 special tokens", "got 2"]),
        ({"max_length": -1}, ["max_length", "-1"]),
        ({"max_length": 8, "truncation_side": "middle"}, ["truncation_side", "'middle'"]),
    ],
)
def test_wrong_options_are_refused(
    folders: dict[str, Path], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer.from_folder(folders["bert"]).encode(["the"], **options)
    for word in words:
        assert word in str(caught.value)


def test_threads_with_lengths_of_their_own_do_not_disturb_each_other(
    folders: dict[str, Path],
) -> None:
    tokenizer = Tokenizer.from_folder(folders["bert"])
    texts = random_texts(40, 40, seed=9)
    jobs = [(length, side) for length in range(3, 35) for side in ("right", "left")]

    def run(job: tuple[int, str]) -> list[Any]:
        return pairs_of(tokenizer.encode(texts, max_length=job[0], truncation_side=job[1]))  # type: ignore[arg-type]

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, jobs)) == alone


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[", b"\xff\xfe", b'{"model": {"type": "Magic"}}', b"null", b"[" * 100_000],
)
def test_a_damaged_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="sound tokenizer file") as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["tokenizer.json or vocab.txt", "neither"]),
        ({"sentencepiece.bpe.model": b"x"}, ["sentencepiece.bpe.model", "save the tokenizer"]),
        ({"vocab.json": b"{}", "merges.txt": b""}, ["vocab.json", "save the tokenizer"]),
        ({"vocab.txt": b""}, ["vocab.txt", "[UNK]"]),
        ({"vocab.txt": b"[UNK]\n[CLS]\n"}, ["vocab.txt", "sep_token", "[SEP]"]),
        ({"vocab.txt": b"\xff\xfe"}, ["vocab.txt", "UTF-8"]),
    ],
)
def test_missing_or_damaged_files_are_named(
    tmp_path: Path, files: dict[str, bytes], words: list[str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_lower_case": "yes"}, ["do_lower_case", "'yes'"]),
        ({"strip_accents": 1}, ["strip_accents", "1"]),
        ({"tokenize_chinese_chars": None}, ["tokenize_chinese_chars", "None"]),
        ({"model_max_length": "64"}, ["model_max_length", "'64'"]),
        ({"model_max_length": 0}, ["model_max_length", "0"]),
        ({"model_max_length": True}, ["model_max_length", "True"]),
        ({"model_max_length": float("nan")}, ["model_max_length", "nan"]),
        ({"do_lower_case": None}, ["do_lower_case", "None"]),
    ],
)
@pytest.mark.parametrize("source", ["vocab.txt", "tokenizer.json"])
def test_wrong_settings_are_refused(
    bert: Path, vocab_only: Path, settings: dict[str, Any], words: list[str], source: str
) -> None:
    folder = bert if source == "tokenizer.json" else vocab_only
    write_json(folder / "tokenizer_config.json", settings)
    with pytest.raises(ConfigError, match="tokenizer_config") as caught:
        Tokenizer.from_folder(folder)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("limit", "read"), [(64, 64), (512.0, 512), (10**30, None), (1e30, None)])
def test_model_max_length_is_read_where_it_is_one(
    bert: Path, limit: float, read: int | None
) -> None:
    edit_json(bert / "tokenizer_config.json", model_max_length=limit)
    assert Tokenizer.from_folder(bert).model_max_length == read


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("unit", ["the cat ", "a ", ".", "中"])
def test_tokenizing_one_long_text_stays_within_its_bound(bert: Path, unit: str) -> None:
    code = f"""if True:
    import resource
    from pathlib import Path
    from minibert.tokenizer import Tokenizer, scratch_bytes
    tokenizer = Tokenizer.from_folder(Path({str(bert)!r}))
    tokenizer.encode(["the cat"], max_length=9)
    text = {unit!r} * (300_000 // {len(unit)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer.encode([text], max_length=9)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown <= scratch_bytes(len(text)), (grown, scratch_bytes(len(text)))
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_encodings_keep_offsets_and_are_not_cut(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(folders["bert"])
    text = "The  unhappy cat"
    (encoding,) = tokenizer.encodings([text])
    assert encoding.tokens == ["[CLS]", "the", "un", "##happy", "cat", "[SEP]"]
    assert [text[begin:end] for begin, end in encoding.offsets[1:-1]] == [
        "The",
        "un",
        "happy",
        "cat",
    ]
    (bare,) = tokenizer.encodings(["the cat " * 500], add_special_tokens=False)
    assert len(bare) == 1000


def test_printable_ascii_never_fails(folders: dict[str, Path]) -> None:
    rng = random.Random(11)
    texts: list[Text] = ["".join(rng.choices(string.printable, k=30)) for _ in range(100)]
    for family in FAMILIES:
        assert ours(folders[family], texts, 64) == theirs(folders[family], texts, 64)
