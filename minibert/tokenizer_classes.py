"""What a tokenizer's class makes anew, as the classes of transformers 5 do.

They take the vocabulary of tokenizer.json and SentencePiece's character map, and make the rest
themselves, from tokenizer_config.json and from defaults of their own: what tokenizer.json says of
normalizer, pre-tokenizer and the tokens around a text has no effect. A class without a kind
(`PreTrainedTokenizerFast`, `TokenizersBackend`) and a name that transformers does not know keep
what the file says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minibert.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["WORDPIECE_CLASSES", "find_class", "follow_class", "named_class", "token_text"]

WORDPIECE_CLASSES = (
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
)
"""Those that are BERT's under another name."""

_BYTE_CLASSES = ("BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "RobertaTokenizer")
_PIECE_CLASSES = ("CamembertTokenizer", "XLMRobertaTokenizer")
_CLASS_OF_MODEL = {  # where no file names a class
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
_BERT_SETTINGS = (  # of the normalizer: their keys in tokenizer_config.json, and the defaults
    ("lowercase", "do_lower_case", True),
    ("strip_accents", "strip_accents", None),
    ("handle_chinese_chars", "tokenize_chinese_chars", True),
)
_PREFIX = "add_prefix_space"
_SPACE = "▁"  # what SentencePiece writes for a space


def named_class(config: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """The class that the settings name, as they write it; None where they name none.

    Args:
        config: tokenizer_config.json.
        model: config.json.
    """
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    return str(name) if name else None


def find_class(config: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The class by which transformers reads the files, without "Fast"; "" where none is known.

    Args:
        config: tokenizer_config.json.
        model: config.json.
    """
    name = named_class(config, model)
    if name is None:
        return _CLASS_OF_MODEL.get(model.get("model_type", "bert"), "")
    return name.removesuffix("Fast")


def token_text(token: Any) -> Any:
    """A token's text: settings hold it alone, or with the rules of its matching."""
    return token.get("content") if isinstance(token, dict) else token


def follow_class(
    backend: tokenizers.Tokenizer, name: str, config: Mapping[str, Any], *, source: Path
) -> list[str]:
    """Make anew what the class makes anew; of a tokenizer of another kind, nothing.

    Args:
        backend: as its file says; changed.
        name: from `find_class`.
        config: tokenizer_config.json.
        source: the file that the vocabulary came from, for messages.

    Returns:
        What was changed, for `explain`.

    Raises:
        TokenizerError: the vocabulary lacks a token that stands around every text.
    """
    from tokenizers import processors

    parts = _Parts(backend, name, config, source)
    kind = type(backend.model).__name__
    if kind == "WordPiece" and name in WORDPIECE_CLASSES:
        parts.follow_bert()
        parts.surround(processors.BertProcessing, "sep_token", "cls_token", ("[SEP]", "[CLS]"))
    elif kind == "WordPiece" and name == "MPNetTokenizer":
        parts.follow_bert()
        parts.surround(processors.RobertaProcessing, "sep_token", "cls_token")
    elif kind == "BPE" and name in _BYTE_CLASSES:
        parts.follow_roberta()
        parts.surround(processors.RobertaProcessing, "sep_token", "cls_token")
    elif kind == "Unigram" and name in _PIECE_CLASSES:
        parts.follow_sentencepiece()
        parts.surround(_as_pieces, "eos_token", "bos_token")
    return parts.notes


class _Parts:
    """The parts of a backend, each replaced where it does something else than the class's."""

    def __init__(
        self, backend: tokenizers.Tokenizer, name: str, config: Mapping[str, Any], source: Path
    ) -> None:
        self.notes: list[str] = []
        self._backend = backend
        self._name = name
        self._config = config
        self._source = source

    def follow_bert(self) -> None:
        from tokenizers import normalizers, pre_tokenizers

        known = self._backend.normalizer
        values = {
            attribute: self._config.get(key, default) for attribute, key, default in _BERT_SETTINGS
        }
        if self._set("normalizer", normalizers.BertNormalizer(clean_text=True, **values)):
            changed = [
                (key, values[attribute])
                for attribute, key, _ in _BERT_SETTINGS
                if getattr(known, attribute, values[attribute]) != values[attribute]
            ]
            if not changed:
                self._note("the normalizer")
            for key, value in changed:
                self._note(f"{key} = {value}", key)
        self._replace("pre_tokenizer", pre_tokenizers.BertPreTokenizer())

    def follow_roberta(self) -> None:
        from tokenizers import pre_tokenizers

        self._replace("normalizer", None)
        prefix = bool(self._config.get(_PREFIX, False))
        self._replace("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=prefix), _PREFIX)

    def follow_sentencepiece(self) -> None:
        import base64  # not at the start of a process that reads BERT's

        from tokenizers import normalizers, pre_tokenizers

        known = json.loads(_state(self._backend.normalizer) or "{}")
        maps = [
            base64.b64decode(part["precompiled_charsmap"])
            for part in known.get("normalizers", [known])
            if part.get("type") == "Precompiled"
        ]
        self._replace("normalizer", normalizers.Precompiled(maps[0]) if maps else None)
        scheme = "always" if self._config.get(_PREFIX, True) else "never"
        spaces = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
        wanted = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
        self._replace("pre_tokenizer", wanted, _PREFIX)

    def surround(
        self,
        make: Callable[[tuple[str, int], tuple[str, int]], Any],
        last: str,
        first: str,
        defaults: tuple[str, str] = ("</s>", "<s>"),
    ) -> None:
        """Put a special token before each text and one after it, as `make(last, first)` does."""
        wanted = make(self._special(last, defaults[0]), self._special(first, defaults[1]))
        ends = _ends(wanted)
        known = self._backend.post_processor
        if known is None or _ends(known) != ends:
            self._backend.post_processor = wanted
            ids, _ = ends
            self._note(f"texts stand between the ids {ids[0]} and {ids[-1]}", first, last)

    def _replace(self, part: str, wanted: Any, *keys: str) -> None:
        if self._set(part, wanted):
            self._note(f"the {part.replace('_', '-')}", *keys)

    def _set(self, part: str, wanted: Any) -> bool:
        """Whether it was another one."""
        other = _state(getattr(self._backend, part)) != _state(wanted)
        if other:
            setattr(self._backend, part, wanted)
        return other

    def _special(self, key: str, default: str) -> tuple[str, int]:
        token = token_text(self._config.get(key)) or default
        index = self._backend.token_to_id(token) if isinstance(token, str) else None
        if index is None:
            raise TokenizerError(f"{self._source} must hold the {key} {token!r}, it does not")
        return token, index

    def _note(self, what: str, *keys: str) -> None:
        """Say what was overruled: by tokenizer_config.json where that has one of the keys."""
        named = any(key in self._config for key in keys)
        source = "tokenizer_config.json" if named else f"the default of {self._name}"
        self.notes.append(f"{what} ({source} overrules tokenizer.json)")


def _as_pieces(last: tuple[str, int], first: tuple[str, int]) -> Any:
    from tokenizers import processors

    begin, end = first[0], last[0]
    return processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, end, "$B", end],
        special_tokens=[first, last],
    )


def _ends(processor: Any) -> tuple[list[int], list[int]]:
    """Ids and types of the special tokens around a pair."""
    from tokenizers import Encoding

    around = processor.process(Encoding(), Encoding())
    return around.ids, around.type_ids


def _state(part: Any) -> bytes | None:
    """What a part does, in the words of tokenizer.json."""
    return None if part is None else part.__getstate__()
