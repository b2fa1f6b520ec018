from __future__ import annotations

import random
import shutil
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minibert.errors import InputError
from minibert.tokenizer import Text, Tokenizer
from tests.checkpoints import FAMILIES, save_tiny
from tests.tokenized import NASTY, ours, pairs_of, random_texts, reference, theirs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_tiny(root / family, family) for family in FAMILIES}


@pytest.fixture
def bert(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["bert"], tmp_path / "bert"))


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
    assert tokenized.num_tokens_before == [4, 6, 2]
    assert [ids.size for ids in tokenized.input_ids] == [4, 4, 2]
    assert tokenized.truncated == [1]


def test_no_texts_give_no_ids(folders: dict[str, Path]) -> None:
    tokenized = Tokenizer.from_folder(folders["bert"]).encode([], max_length=8)
    assert tokenized.input_ids == []
    assert tokenized.truncated == []


def test_more_texts_than_one_chunk_keep_their_order(folders: dict[str, Path]) -> None:
    texts: list[Text] = list(random_texts(2500, 5, seed=3))
    assert ours(folders["bert"], texts, 6) == theirs(folders["bert"], texts, 6)


@pytest.mark.parametrize("prompt", ["query: ", "the cat", "", "unhappy", "é 你 "])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_as_long_as_sentence_transformers_counts(
    folders: dict[str, Path], family: str, prompt: str
) -> None:
    tokenizer = reference(folders[family])
    ids = tokenizer(prompt)["input_ids"]
    counted = len(ids) - (ids[-1] in tokenizer.all_special_ids)
    assert Tokenizer.from_folder(folders[family]).prompt_length(prompt) == counted


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
