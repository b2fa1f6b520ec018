"""Texts to token ids, on HuggingFace `tokenizers`.

Truncation and padding of the underlying tokenizer are always off: setting them changes shared
state, so two threads could not ask for different lengths. Cutting is done here, per call, with the
results of `tokenizers`: special tokens stay, the text between them gives way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from minibert.arguments import check_unicode
from minibert.errors import InputError
from minibert.tokenizer_files import TokenizerFiles, TruncationSide, read_tokenizer

Text = str | tuple[str, str]
"""One text, or a pair of texts that the model reads together."""

# What is handed to the Rust side at once: it holds several strings and masks for every token, which
# are only read for their ids.
_CHUNK_TEXTS = 1024
_CHUNK_CHARACTERS = 1 << 16
_BYTES_PER_CHARACTER = 768  # measured: English 83, one-letter words 218, Chinese 479


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

    def __init__(self, files: TokenizerFiles) -> None:
        """Take a tokenizer, whose own truncation and padding are switched off.

        Args:
            files: what was read; its backend is owned by this object from here on.
        """
        self.backend = files.backend
        self.files = files
        self.backend.no_truncation()
        self.backend.no_padding()

    @classmethod
    def from_folder(cls, folder: Path, *, do_lower_case: bool = False) -> Tokenizer:
        """Load a checkpoint's tokenizer; see `read_tokenizer`."""
        return cls(read_tokenizer(folder, do_lower_case=do_lower_case))

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
        prompt: str = "",
        truncation_side: TruncationSide | None = None,
        first_index: int = 0,
    ) -> TokenizedTexts:
        """Turn texts into ids, special tokens included, at most `max_length` each.

        Args:
            texts: texts, or pairs; a pair is cut at its longer text first.
            max_length: most tokens of a text, special tokens included.
            prompt: put before every text that is no pair.
            truncation_side: which end is cut off; None for the one that the files name.
            first_index: number of the first text, for messages.

        Raises:
            InputError: max_length leaves no room for a token, or a text is not valid Unicode.
        """
        side = self.files.truncation_side if truncation_side is None else truncation_side
        if side not in get_args(TruncationSide):
            raise InputError(f"truncation_side must be 'right' or 'left', got {side!r}")
        pairs = any(isinstance(text, tuple) for text in texts)
        special = self.num_special_tokens(pair=pairs)
        if max_length <= special:
            raise InputError(
                f"max_length must exceed the {special} special tokens of a text, got {max_length}"
            )
        ids: list[NDArray[np.int32]] = []
        types: list[NDArray[np.int32]] = []
        before: list[int] = []
        for begin, end in _chunks(texts, len(prompt)):
            chunk = list(texts[begin:end])
            prompted = chunk
            if prompt:
                prompted = [prompt + text if isinstance(text, str) else text for text in chunk]
            try:
                encodings = self._encode_chunk(prompted, offsets=False)
            except (TypeError, UnicodeError):
                _check_unicode(chunk, first_index + begin)  # says which text is at fault
                raise
            for text, encoding in zip(chunk, encodings, strict=True):
                length = len(encoding)
                before.append(length)
                kept = None
                if length > max_length:
                    if isinstance(text, str):
                        kept = _kept(encoding, max_length, side)
                    else:
                        encoding = self._cut_pair(text, max_length, side)
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
        encoding = self._encode_chunk([prompt])[0]
        ends_special = bool(encoding.special_tokens_mask and encoding.special_tokens_mask[-1])
        return len(encoding) - int(ends_special)

    def encodings(self, texts: Sequence[Text], *, add_special_tokens: bool = True) -> list[Any]:
        """The `tokenizers.Encoding` of each text: tokens, character offsets, masks; uncut."""
        try:
            return self._encode_chunk(list(texts), add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError):
            _check_unicode(texts, 0)
            raise

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids back to text."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _encode_chunk(
        self, texts: list[Text], *, add_special_tokens: bool = True, offsets: bool = True
    ) -> list[Any]:
        encode = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        encodings: list[Any] = encode(texts, add_special_tokens=add_special_tokens)
        return encodings

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


def _check_unicode(texts: Sequence[Text], first_index: int) -> None:
    """Refuse the first text that has no UTF-8, by its number."""
    for i, text in enumerate(texts):
        for part in (text,) if isinstance(text, str) else text:
            check_unicode(f"text {first_index + i}", part)


def _chunks(texts: Sequence[Text], prompt_length: int) -> Iterator[tuple[int, int]]:
    begin = characters = 0
    for i, text in enumerate(texts):
        size = prompt_length + (len(text) if isinstance(text, str) else sum(map(len, text)))
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
