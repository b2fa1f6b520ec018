"""Texts to token ids, on HuggingFace `tokenizers`.

Truncation and padding of the underlying tokenizer are always off: setting them changes shared
state, so two threads could not ask for different lengths. Cutting is done here, per call, with the
results of `tokenizers`: special tokens stay, the text between them gives way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibert.config import read_json
from minibert.errors import ConfigError, InputError, TokenizerError

if TYPE_CHECKING:
    import tokenizers

TruncationSide = Literal["right", "left"]
Text = str | tuple[str, str]
"""One text, or a pair of texts that the model reads together."""

# What is handed to the Rust side at once: it holds several strings and masks for every token, which
# are only read for their ids.
_CHUNK_TEXTS = 1024
_CHUNK_CHARACTERS = 1 << 16
_BYTES_PER_CHARACTER = 768  # measured: English 83, one-letter words 218, Chinese 479
_NO_LIMIT = 10**9  # tokenizer_config.json writes huge numbers where it knows no limit


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of several texts.

    Attributes:
        input_ids: one int32 array per text.
        token_type_ids: one int32 array per text.
        num_tokens_before: tokens that each text had before cutting.
    """

    input_ids: list[NDArray[np.int32]]
    token_type_ids: list[NDArray[np.int32]]
    num_tokens_before: list[int]

    @property
    def seqlens(self) -> list[int]:
        """Tokens of each text after cutting. A list: one text's array takes longer than its ids."""
        return [ids.size for ids in self.input_ids]

    @property
    def truncated(self) -> list[int]:
        """Indices of the texts that were cut."""
        seqlens = self.seqlens
        if self.num_tokens_before == seqlens:
            return []
        pairs = zip(self.num_tokens_before, seqlens, strict=True)
        return [i for i, (before, after) in enumerate(pairs) if before > after]


class Tokenizer:
    """A checkpoint's tokenizer. Thread-safe: no call changes it."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, model_max_length: int | None, source: str
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`, whose truncation and padding are switched off.

        Args:
            backend: the tokenizer; owned by this object from here on.
            model_max_length: limit named by tokenizer_config.json, None when there is none.
            source: where it came from, for `explain`.
        """
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.model_max_length = model_max_length
        self.source = source
        self.notes: list[str] = []

    @classmethod
    def from_folder(cls, folder: Path, *, do_lower_case: bool = False) -> Tokenizer:
        """Load tokenizer.json, or build a WordPiece tokenizer from vocab.txt.

        Args:
            folder: the checkpoint.
            do_lower_case: lower-case every text first (sentence_bert_config.json asks for it).

        Raises:
            TokenizerError: neither file is there, or a file is damaged.
            ConfigError: tokenizer_config.json is not JSON, or a setting has a wrong type.
        """
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        _check_config(config_path, config)
        backend, source = _load_backend(folder, config)
        limit = config.get("model_max_length")
        tokenizer = cls(
            backend,
            model_max_length=None if limit is None or limit >= _NO_LIMIT else int(limit),
            source=source,
        )
        tokenizer.notes = _follow_config(backend, config)
        if do_lower_case:
            tokenizer.notes += _lower_first(backend)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Known tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def num_special_tokens(self, *, pair: bool = False) -> int:
        """Special tokens that are added to one text, or to a pair."""
        return int(self.backend.num_special_tokens_to_add(pair))

    def encode(
        self,
        texts: Sequence[Text],
        *,
        max_length: int,
        truncation_side: TruncationSide = "right",
        first_index: int = 0,
    ) -> TokenizedTexts:
        """Turn texts into ids, special tokens included, at most `max_length` each.

        Args:
            texts: texts, or pairs; a pair is cut at its longer text first.
            max_length: most tokens of a text, special tokens included.
            truncation_side: which end is cut off.
            first_index: number of the first text, for messages.

        Raises:
            InputError: max_length leaves no room for a token, or a text is not valid Unicode.
        """
        if truncation_side not in ("right", "left"):
            raise InputError(f"truncation_side must be 'right' or 'left', got {truncation_side!r}")
        pairs = any(isinstance(text, tuple) for text in texts)
        special = self.num_special_tokens(pair=pairs)
        if max_length <= special:
            raise InputError(
                f"max_length must exceed the {special} special tokens of a text, got {max_length}"
            )
        ids: list[NDArray[np.int32]] = []
        types: list[NDArray[np.int32]] = []
        before: list[int] = []
        for begin, end in _chunks(texts):
            chunk = list(texts[begin:end])
            for text, encoding in zip(
                chunk, self._encode_chunk(chunk, first_index + begin, offsets=False), strict=True
            ):
                length = len(encoding)
                before.append(length)
                kept = None
                if length > max_length:
                    if isinstance(text, str):
                        kept = _kept(encoding, max_length, truncation_side)
                    else:
                        encoding = self._cut_pair(text, max_length, truncation_side)
                input_ids = np.array(encoding.ids, np.int32)
                type_ids = np.array(encoding.type_ids, np.int32)
                ids.append(input_ids if kept is None else input_ids[kept])
                types.append(type_ids if kept is None else type_ids[kept])
        return TokenizedTexts(ids, types, before)

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the start of a text, special tokens at its start included.

        As sentence-transformers counts: the prompt is tokenized alone, less a special token at
        its end.
        """
        encoding = self._encode_chunk([prompt], 0)[0]
        ends_special = bool(encoding.special_tokens_mask and encoding.special_tokens_mask[-1])
        return len(encoding) - int(ends_special)

    def encodings(self, texts: Sequence[Text], *, add_special_tokens: bool = True) -> list[Any]:
        """The `tokenizers.Encoding` of each text: tokens, character offsets, masks; uncut."""
        return self._encode_chunk(list(texts), 0, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids back to text."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _encode_chunk(
        self,
        texts: list[Text],
        first_index: int,
        *,
        add_special_tokens: bool = True,
        offsets: bool = True,
    ) -> list[Any]:
        encode = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        try:
            encodings = encode(texts, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError):
            # One text is at fault: find it, so that the message can name it.
            for i, text in enumerate(texts):
                for part in (text,) if isinstance(text, str) else text:
                    try:
                        part.encode()
                    except UnicodeEncodeError as error:
                        raise InputError(
                            f"text {first_index + i} must be valid Unicode, got a lone surrogate "
                            f"at character {error.start}"
                        ) from None
            raise
        found: list[Any] = encodings
        return found

    def _cut_pair(self, pair: tuple[str, str], max_length: int, side: TruncationSide) -> Any:
        first, second = self.backend.encode_batch(list(pair), add_special_tokens=False)
        room = max_length - self.num_special_tokens(pair=True)
        shares = _shares([len(first), len(second)], room)
        for encoding, share in zip((first, second), shares, strict=True):
            if share < len(encoding):
                encoding.truncate(share, direction=side)
        return self.backend.post_process(first, second)


def _kept(encoding: Any, max_length: int, side: TruncationSide) -> NDArray[np.intp]:
    """Places of a single text's tokens that stay: all special tokens and one end of the text."""
    special = np.array(encoding.special_tokens_mask, bool)  # those that the text itself names are 0
    places = np.flatnonzero(~special)
    surplus = special.size - max_length
    stay = np.ones(special.size, bool)
    stay[places[-surplus:] if side == "right" else places[:surplus]] = False
    return np.flatnonzero(stay)


def scratch_bytes(longest: int) -> int:
    """Upper bound of what tokenizing takes at once, in bytes.

    Args:
        longest: characters of the longest text.
    """
    return _BYTES_PER_CHARACTER * (_CHUNK_CHARACTERS + longest)


def _chunks(texts: Sequence[Text]) -> Iterator[tuple[int, int]]:
    begin = characters = 0
    for i, text in enumerate(texts):
        size = len(text) if isinstance(text, str) else sum(map(len, text))
        full = characters + size > _CHUNK_CHARACTERS or i - begin == _CHUNK_TEXTS
        if full and i > begin:
            yield begin, i
            begin, characters = i, 0
        characters += size
    if begin < len(texts):
        yield begin, len(texts)


def _shares(seqlens: list[int], room: int) -> list[int]:
    """Tokens that each part of a pair keeps: the longer part gives way first."""
    if sum(seqlens) <= room:
        return seqlens
    short = min(seqlens)
    if short > room // 2:
        # Both are longer than half of the room. The odd token goes to the part that is longer
        # (to the second where they are alike), as in `tokenizers`.
        shares = [room // 2, room - room // 2]
        return shares if seqlens[0] <= seqlens[1] else shares[::-1]
    return [short, room - short] if seqlens[0] <= seqlens[1] else [room - short, short]


def _check_config(path: Path, config: dict[str, Any]) -> None:
    for key, allowed in (
        ("do_lower_case", (True, False)),
        ("strip_accents", (True, False, None)),
        ("tokenize_chinese_chars", (True, False)),
    ):
        if key in config and not any(config[key] is value for value in allowed):
            raise ConfigError(f"{path}: {key} must be a boolean, got {config[key]!r}")
    limit = config.get("model_max_length")
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (is_number and limit >= 1):
        raise ConfigError(f"{path}: model_max_length must be at least 1, got {limit!r}")


def _load_backend(folder: Path, config: dict[str, Any]) -> tuple[tokenizers.Tokenizer, str]:
    import tokenizers  # while weights are laid out in the background

    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file)), "tokenizer.json"
        except Exception as error:  # the Rust side raises bare Exception
            raise TokenizerError(f"{file} must be a sound tokenizer file: {error}") from None
    vocab = folder / "vocab.txt"
    if vocab.is_file():
        return _from_vocab(vocab, config), "vocab.txt"
    others = [
        name
        for name in ("sentencepiece.bpe.model", "spiece.model", "vocab.json")
        if (folder / name).exists()
    ]
    found = f"; {', '.join(others)} must be converted: save the tokenizer again with a current "
    raise TokenizerError(
        f"{folder} must hold tokenizer.json or vocab.txt, it has neither"
        + (f"{found}version of transformers" if others else "")
    )


def _from_vocab(vocab: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        tokens = vocab.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{vocab} must be readable UTF-8: {error}") from None
    if tokens and tokens[-1] == "":
        tokens.pop()
    ids = {token.rstrip("\r"): i for i, token in enumerate(tokens)}

    def name(key: str, default: str) -> str:
        token = config.get(key, default)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str) or token not in ids:
            raise TokenizerError(f"{vocab} must hold the {key} {token!r}, it does not")
        return token

    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    unknown = name("unk_token", "[UNK]")
    first, last = name("cls_token", "[CLS]"), name("sep_token", "[SEP]")
    backend = tokenizers.Tokenizer(
        models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing((last, ids[last]), (first, ids[first]))
    backend.decoder = decoders.WordPiece(prefix="##")
    special = [unknown, first, last]
    special += [token for token in ("[PAD]", "[MASK]") if token in ids and token not in special]
    backend.add_special_tokens(special)
    return backend


def _follow_config(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> list[str]:
    """Let tokenizer_config.json overrule a BERT normalizer, as transformers does.

    Its tokenizers of BERT's kind take their own defaults for keys that are not there; the class
    without a kind keeps what tokenizer.json says.
    """
    normalizer = backend.normalizer
    generic = config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if generic or type(normalizer).__name__ != "BertNormalizer":
        return []
    notes = []
    for key, attribute, default in (
        ("do_lower_case", "lowercase", True),
        ("strip_accents", "strip_accents", None),
        ("tokenize_chinese_chars", "handle_chinese_chars", True),
    ):
        wanted = config.get(key, default)
        if wanted != getattr(normalizer, attribute):
            setattr(normalizer, attribute, wanted)
            source = "tokenizer_config.json" if key in config else "the default of BertTokenizer"
            notes.append(f"{key} = {wanted} ({source} overrules tokenizer.json)")
    if notes:
        backend.normalizer = normalizer
    return notes


def _lower_first(backend: tokenizers.Tokenizer) -> list[str]:
    from tokenizers import normalizers

    lower = normalizers.Lowercase()
    known = backend.normalizer
    if getattr(known, "lowercase", None) is True:
        return []
    backend.normalizer = normalizers.Sequence([lower] if known is None else [lower, known])
    return ["texts are lower-cased first (do_lower_case of sentence_bert_config.json)"]
