"""Tokenizers whose settings name a class, against transformers reading the same files."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from minibert.errors import ConfigError, TokenizerError
from minibert.tokenizer import Text
from minibert.tokenizer import Tokenizer as Ours
from tests.checkpoints import edit_json, make_tokenizer, write_json
from tests.tokenized import NASTY, ours, random_texts, theirs

CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizerFast",
    "camembert": "CamembertTokenizer",
}
TEXTS: list[Text] = [
    *NASTY,
    *random_texts(30, 20, seed=1),
    "  the   cat ",
    "the cat\n",
    "\tthe\r\ncat\u3000sat",
    "the<mask>cat <mask> sat [MASK]cat",
    "\uff21\uff22 the \u2163 \uff41",
    "▁the ▁ cat▁",
]


def save(folder: Path, family: str, tokenizer: Tokenizer | None = None, **settings: Any) -> Path:
    """Only the files of a tokenizer; it is of the family's usual class unless settings name one."""
    write_json(folder / "config.json", {"model_type": family})
    (tokenizer or make_tokenizer(family)).save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": CLASSES[family], "model_max_length": 64} | settings,
    )
    return folder


def notes(folder: Path) -> list[str]:
    return Ours.from_folder(folder).files.notes


def character_map(replacements: Mapping[str, str]) -> bytes:
    """SentencePiece's precompiled map: a double array of the keys' bytes, then what they become.

    Each node has 256 places of its own, for the bytes that may follow.
    """
    children: list[dict[int, int]] = [{}]
    ends: dict[int, int] = {}
    texts = b""
    for key, value in replacements.items():
        node = 0
        for byte in key.encode():
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends[node] = len(texts)
        texts += value.encode() + b"\0"
    units = [0] * (256 * (len(children) + 1))
    places = {0: (0, 0)}  # of each node, and the byte that leads there
    for node, following in enumerate(children):
        base = 256 * (node + 1)
        place, label = places[node]
        units[place] = label | (node in ends) << 8 | (place ^ base) << 10
        if node in ends:
            units[base] = ends[node] | 1 << 31
        for byte, child in following.items():
            places[child] = (base ^ byte, byte)
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + texts


MAP = character_map({"\uff21": "A", "\u3000": " ", "\t": " ", "\n": " ", "\u2163": "iv", "é": "é"})


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize("named_in", ["tokenizer_config.json", "config.json", "nothing"])
def test_ids_are_those_of_transformers(
    tmp_path: Path, family: str, prefix: bool | None, named_in: str
) -> None:
    folder = save(tmp_path, family, **({} if prefix is None else {"add_prefix_space": prefix}))
    if named_in != "tokenizer_config.json":
        edit_json(folder / "tokenizer_config.json", tokenizer_class=None)
    if named_in == "config.json":
        edit_json(folder / "config.json", tokenizer_class=CLASSES[family])
    assert ours(folder, TEXTS, 64) == theirs(folder, TEXTS, 64)
    couples: list[Text] = list(zip(random_texts(20, 9, 2), random_texts(20, 9, 3), strict=True))
    assert ours(folder, couples, 64) == theirs(folder, couples, 64)


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert"])
@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        normalizers.NFKC(),
        normalizers.Precompiled(MAP),
        normalizers.Sequence(
            [normalizers.Precompiled(MAP), normalizers.Replace(Regex(" {2,}"), " ")]
        ),
        normalizers.Sequence([normalizers.Lowercase()]),
    ],
    ids=["none", "nfkc", "map", "map and spaces", "lower"],
)
@pytest.mark.parametrize("split", [True, False])
def test_of_sentencepiece_only_the_character_map_is_kept(
    tmp_path: Path, family: str, normalizer: Any, split: bool
) -> None:
    tokenizer = make_tokenizer(family)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    spaces = pre_tokenizers.Metaspace()
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if split else spaces
    )
    folder = save(tmp_path, family, tokenizer)
    assert ours(folder, TEXTS, 64) == theirs(folder, TEXTS, 64)
    said = " ".join(notes(folder))
    assert ("pre-tokenizer" in said) == (not split)


def test_the_character_map_of_these_tests_is_one() -> None:
    assert normalizers.Precompiled(MAP).normalize_str("\uff21\t\u3000x\u2163") == "A  xiv"
    state = normalizers.Precompiled(MAP).__getstate__()
    assert base64.b64encode(MAP) in state


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {"cls_token": "cat"}),
        ("bert", {"sep_token": {"content": "cat", "lstrip": False, "__type": "AddedToken"}}),
        ("distilbert", {"cls_token": "cat", "sep_token": "dog"}),
        ("roberta", {"cls_token": "the", "sep_token": "at"}),
        ("xlm-roberta", {"bos_token": "▁cat", "eos_token": "▁dog"}),
        ("camembert", {"bos_token": "<pad>"}),
    ],
)
def test_texts_stand_between_the_tokens_that_tokenizer_config_names(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    folder = save(tmp_path, family, **settings)
    texts: list[Text] = ["a soft mat", ("a soft", "mat"), "", "bread"]
    for text in texts:
        assert ours(folder, [text], 64) == theirs(folder, [text], 64)
    assert any(
        "texts stand between" in note and "tokenizer_config" in note for note in notes(folder)
    )


@pytest.mark.parametrize("family", CLASSES)
def test_where_the_file_says_the_same_nothing_is_said(tmp_path: Path, family: str) -> None:
    tokenizer = make_tokenizer(family)
    if family in ("xlm-roberta", "camembert"):
        tokenizer.normalizer = normalizers.Precompiled(MAP)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
    assert notes(save(tmp_path, family, tokenizer)) == []


@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "TokenizersBackend", "NoSuchTokenizer"]
)
@pytest.mark.parametrize("family", CLASSES)
def test_a_class_without_a_kind_keeps_the_file(tmp_path: Path, family: str, name: str) -> None:
    tokenizer = make_tokenizer(family)
    tokenizer.normalizer = normalizers.Lowercase()
    folder = save(tmp_path, family, tokenizer, tokenizer_class=name)
    assert notes(folder) == []
    assert ours(folder, TEXTS, 64) == theirs(folder, TEXTS, 64)


@pytest.mark.parametrize("family", CLASSES)
def test_what_transformers_saves_is_read_as_it_reads_it(tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(save(tmp_path / "first", family))
    saved.add_tokens(["newtok", "Zz top"])
    saved.add_special_tokens({"extra_special_tokens": ["[X1]"]})
    folder = tmp_path / "second"
    saved.save_pretrained(folder)
    write_json(folder / "config.json", {"model_type": family})
    texts = [*TEXTS, "a newtok cat", "newtokcat", "Zz top zz TOP", "x[X1]y [X1] z", "NEWTOK"]
    assert ours(folder, texts, 64) == theirs(folder, texts, 64)


@pytest.mark.parametrize("name", ["LongformerTokenizer", "BartTokenizerFast"])
def test_robertas_other_names_are_robertas(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, "roberta", tokenizer_class=name, add_prefix_space=True)
    assert ours(folder, TEXTS, 64) == theirs(folder, TEXTS, 64)
    assert any("pre-tokenizer" in note for note in notes(folder))


def test_mpnet_is_bert_between_the_tokens_of_roberta(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bert")
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    folder = save(tmp_path, "bert", tokenizer, tokenizer_class="MPNetTokenizer", pad_token="<pad>")
    assert ours(folder, TEXTS, 64) == theirs(folder, TEXTS, 64)
    couples: list[Text] = [("the cat", "sat"), ("", "a soft mat")]
    assert ours(folder, couples, 64) == theirs(folder, couples, 64)
    assert any("texts stand between" in note for note in notes(folder))


def test_a_model_of_bert_may_have_sentencepiece(tmp_path: Path) -> None:
    folder = save(tmp_path, "xlm-roberta")
    edit_json(folder / "config.json", model_type="bert")
    assert ours(folder, TEXTS, 64) == theirs(folder, TEXTS, 64)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"cls_token": "[NONE]"}, "must hold the cls_token '.NONE.'"),
        ("roberta", {"sep_token": "none"}, "must hold the sep_token 'none'"),
        ("xlm-roberta", {"eos_token": 3}, "must hold the eos_token 3"),
    ],
)
def test_a_token_that_the_vocabulary_lacks_is_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        Ours.from_folder(save(tmp_path, family, **settings))


def test_a_prefix_that_is_no_boolean_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "roberta", add_prefix_space="yes")
    with pytest.raises(ConfigError, match="add_prefix_space must be a boolean, got 'yes'"):
        Ours.from_folder(folder)
