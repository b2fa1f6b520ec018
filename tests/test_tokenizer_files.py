"""What a tokenizer reads from a folder: vocab.txt, settings, and files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minibert.errors import ConfigError, TokenizerError
from minibert.tokenizer import Text, Tokenizer
from minibert.tokenizer_classes import WORDPIECE_CLASSES
from tests.checkpoints import edit_json, save_tiny, vocabulary, write_json
from tests.tokenized import NASTY, ours, pairs_of, random_texts, theirs


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "bert")


@pytest.fixture
def vocab_only(tmp_path: Path) -> Path:
    folder = tmp_path / "vocab"
    write_json(folder / "config.json", {"model_type": "bert"})
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    return folder


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
    assert Tokenizer.from_folder(vocab_only).files.source == "vocab.txt"


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
    notes = Tokenizer.from_folder(folder).files.notes
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
    notes = Tokenizer.from_folder(bert).files.notes
    assert any("overrules" in note for note in notes) == (name != "PreTrainedTokenizerFast")


@pytest.mark.parametrize("named_in", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("name", [*WORDPIECE_CLASSES, "BertTokenizerFast", "ElectraTokenizerFast"])
def test_vocab_txt_of_a_class_of_berts_kind_gives_the_ids_of_transformers(
    vocab_only: Path, named_in: str, name: str
) -> None:
    write_json(vocab_only / named_in, {"model_type": "bert", "tokenizer_class": name})
    texts: list[Text] = list(NASTY)
    assert ours(vocab_only, texts, 64) == theirs(vocab_only, texts, 64)


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (
            {
                "tokenizer_config.json": {
                    "tokenizer_class": "BertJapaneseTokenizer",
                    "word_tokenizer_type": "basic",
                    "subword_tokenizer_type": "character",
                }
            },
            "BertJapaneseTokenizer",
        ),
        (
            {"config.json": {"model_type": "bert", "tokenizer_class": "RobertaTokenizer"}},
            "RobertaTokenizer",
        ),
        ({"tokenizer_config.json": {"tokenizer_class": "MPNetTokenizer"}}, "MPNetTokenizer"),
        ({"config.json": {"model_type": "roberta"}}, "roberta"),
        ({"config.json": {"model_type": "camembert"}}, "camembert"),
        ({"tokenizer_config.json": {"tokenizer_class": 3}}, "3"),
    ],
)
def test_vocab_txt_of_a_class_that_cuts_in_another_way_is_refused(
    vocab_only: Path, files: dict[str, Any], word: str
) -> None:
    texts: list[Text] = ["THE Cat sat on the mat", "你好 the cat"]
    taken = ours(vocab_only, texts, 64)
    for name, values in files.items():
        write_json(vocab_only / name, values)
    with pytest.raises(TokenizerError, match=f"tokenizer_class must be one of .*{word}"):
        Tokenizer.from_folder(vocab_only)
    if word != "3":
        assert theirs(vocab_only, texts, 64) != taken


ADDED = len(vocabulary())
NEW_TEXTS: list[Text] = ["cat <New> the<new>cat [MORE] [more]", "[MASK] thecat", *NASTY]


def rules(content: str, **others: Any) -> dict[str, Any]:
    plain = dict.fromkeys(["lstrip", "rstrip", "single_word", "normalized"], False)
    return {"content": content, "special": True, **plain, **others}


@pytest.mark.parametrize("source", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens.json": {"[MORE]": ADDED + 1, "<new>": ADDED}},
        {"added_tokens.json": {"cat": vocabulary().index("cat")}},
        {
            "added_tokens.json": {"<new>": ADDED},
            "special_tokens_map.json": {"additional_special_tokens": ["<new>"]},
        },
        {
            "added_tokens.json": {"<new>": ADDED},
            "special_tokens_map.json": {"extra_special_tokens": ["<new>"]},
        },
        {"special_tokens_map.json": {"additional_special_tokens": ["<new>", "[MORE]"]}},
        {"tokenizer_config.json": {"extra_special_tokens": ["<new>"]}},
        {
            "added_tokens.json": {"<new>": ADDED},
            "tokenizer_config.json": {"additional_special_tokens": ["<new>"]},
        },
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    str(ADDED + 1): rules("[MORE]", special=False, normalized=True),
                    str(ADDED): rules("<new>"),
                    "4": rules("[MASK]"),
                }
            },
            "added_tokens.json": {"<old>": ADDED},
        },
    ],
)
def test_added_tokens_have_the_ids_of_transformers(
    bert: Path, vocab_only: Path, files: dict[str, Any], source: str
) -> None:
    folder = bert if source == "tokenizer.json" else vocab_only
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    before = ours(folder, NEW_TEXTS, 64)
    for name, values in files.items():
        write_json(folder / name, values)
    found = ours(folder, NEW_TEXTS, 64)
    assert found == theirs(folder, NEW_TEXTS, 64)
    assert found != before


def test_special_tokens_of_vocab_txt_are_those_of_special_tokens_map(vocab_only: Path) -> None:
    named = {"unk_token": "!", "cls_token": rules("money"), "mask_token": "sat"}
    write_json(vocab_only / "special_tokens_map.json", named)
    assert ours(vocab_only, NEW_TEXTS, 64) == theirs(vocab_only, NEW_TEXTS, 64)


def test_an_added_token_with_an_id_that_it_cannot_have_is_refused(vocab_only: Path) -> None:
    write_json(vocab_only / "added_tokens.json", {"<new>": ADDED + 5})
    with pytest.raises(
        TokenizerError, match=rf"added_tokens\.json: '<new>' .*{ADDED}.*{ADDED + 5}"
    ):
        Tokenizer.from_folder(vocab_only)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("added_tokens.json", {"<new>": "last"}),
        ("added_tokens.json", {"<new>": None}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<new>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": rules("<new>")}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(ADDED): "<new>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(ADDED): rules(3)}}),  # type: ignore[arg-type]
        ("special_tokens_map.json", {"additional_special_tokens": [["<new>"]]}),
        ("special_tokens_map.json", {"additional_special_tokens": 3}),
    ],
)
def test_malformed_added_tokens_are_refused(vocab_only: Path, name: str, values: Any) -> None:
    write_json(vocab_only / name, values)
    with pytest.raises(ConfigError, match="added tokens must be texts with ids"):
        Tokenizer.from_folder(vocab_only)


@pytest.mark.parametrize("named", ["left", "right", None])
@pytest.mark.parametrize("in_file", ["Left", "Right", None])
def test_a_text_is_cut_on_the_side_that_transformers_takes_from_the_files(
    bert: Path, named: str | None, in_file: str | None
) -> None:
    if in_file is not None:
        cut = {"direction": in_file, "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        edit_json(bert / "tokenizer.json", truncation=cut)
    if named is not None:
        edit_json(bert / "tokenizer_config.json", truncation_side=named)
    from transformers import AutoTokenizer

    texts: list[Text] = ["the cat sat on the mat", ("the cat sat", "the dog on the mat")]
    reference, tokenizer = AutoTokenizer.from_pretrained(bert), Tokenizer.from_folder(bert)
    assert tokenizer.files.truncation_side == reference.truncation_side
    expected = [
        reference(*([text] if isinstance(text, str) else text), truncation=True, max_length=6)
        for text in texts
    ]
    found = tokenizer.encode(texts, max_length=6).input_ids
    assert [ids.tolist() for ids in found] == [item["input_ids"] for item in expected]


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


def test_lower_casing_comes_first_where_it_is_asked_for(bert: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    edit_json(bert / "tokenizer_config.json", **settings)
    cased = Tokenizer.from_folder(bert)
    lowered = Tokenizer.from_folder(bert, do_lower_case=True)
    plain = pairs_of(cased.encode(["the cat"], max_length=9))
    assert pairs_of(lowered.encode(["THE Cat"], max_length=9)) == plain
    assert pairs_of(cased.encode(["THE Cat"], max_length=9)) != plain
    assert any("lower-cased" in note for note in lowered.files.notes)


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
        ({"truncation_side": "Left"}, ["truncation_side", "'Left'"]),
        ({"truncation_side": None}, ["truncation_side", "None"]),
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
    assert Tokenizer.from_folder(bert).files.model_max_length == read
