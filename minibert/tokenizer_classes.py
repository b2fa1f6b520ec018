"""What a tokenizer's class makes anew, as the classes of transformers 5 do.

They take the vocabulary of tokenizer.json and SentencePiece's character map, and make the rest
themselves, from tokenizer_config.json and from defaults of their own: what tokenizer.json says of
normalizer, pre-tokenizer and the tokens around a text has no effect. A class without a kind
(`PreTrainedTokenizerFast`, `TokenizersBackend`) and a name that transformers does not know keep
what the file says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minibert.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["WORDPIECE_CLASSES", "find_class", "follow_class", "token_text"]

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
_SPACE = "▁"  # what SentencePiece writes for a space


def find_class(config: dict[str, Any], model: dict[str, Any]) -> str:
    """The class by which transformers reads the files, without "Fast"; "" where none is known.

    Args:
        config: tokenizer_config.json.
        model: config.json.
    """
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if not name:
        return _CLASS_OF_MODEL.get(model.get("model_type", "bert"), "")
    return str(name).removesuffix("Fast")


def token_text(token: Any) -> Any:
    """A token's text: settings hold it alone, or with the rules of its matching."""
    return token.get("content") if isinstance(token, dict) else token


def follow_class(backend: tokenizers.Tokenizer, name: str, config: dict[str, Any]) -> list[str]:
    """Make anew what the class makes anew; of a tokenizer of another kind, nothing.

    Args:
        backend: as its file says; changed.
        name: from `find_class`.
        config: tokenizer_config.json.

    Returns:
        What was changed, for `explain`.

    Raises:
        TokenizerError: the vocabulary lacks a token that stands around every text.
    """
    from tokenizers import processors

    parts = _Parts(backend, name, config)
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

    def __init__(self, backend: tokenizers.Tokenizer, name: str, config: dict[str, Any]) -> None:
        self.notes: list[str] = []
        self._backend = backend
        self._name = name
        self._config = config

    def follow_bert(self) -> None:
        from tokenizers import normalizers, pre_tokenizers

        normalizer = self._backend.normalizer
        if type(normalizer).__name__ != "BertNormalizer":
            normalizer = normalizers.BertNormalizer()
            self._note("the normalizer")
        for key, attribute, default in (
            ("do_lower_case", "lowercase", True),
            ("strip_accents", "strip_accents", None),
            ("tokenize_chinese_chars", "handle_chinese_chars", True),
            ("clean_text", "clean_text", True),
        ):
            named = key in self._config and key != "clean_text"  # which is no setting of the class
            wanted = self._config[key] if named else default
            if wanted != getattr(normalizer, attribute):
                setattr(normalizer, attribute, wanted)
                self._note(f"{key} = {wanted}", named=named)
        if self.notes:
            self._backend.normalizer = normalizer
        self._cut(pre_tokenizers.BertPreTokenizer())

    def follow_roberta(self) -> None:
        from tokenizers import pre_tokenizers

        self._normalize(None)
        prefix = bool(self._config.get("add_prefix_space", False))
        self._cut(pre_tokenizers.ByteLevel(add_prefix_space=prefix))

    def follow_sentencepiece(self) -> None:
        import base64  # not at the start of a process that reads BERT's

        from tokenizers import normalizers, pre_tokenizers

        known = self._backend.normalizer
        state = {} if known is None else json.loads(known.__getstate__())
        maps = [
            base64.b64decode(part["precompiled_charsmap"])
            for part in state.get("normalizers", [state])
            if part.get("type") == "Precompiled"
        ]
        self._normalize(normalizers.Precompiled(maps[0]) if maps else None)
        prefix = self._config.get("add_prefix_space", True)
        spaces = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="always" if prefix else "never"
        )
        self._cut(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]))

    def surround(
        self,
        make: Callable[[tuple[str, int], tuple[str, int]], Any],
        last: str,
        first: str,
        defaults: tuple[str, str] = ("</s>", "<s>"),
    ) -> None:
        """Put a special token before each text and one after it, as `make(last, first)` does."""
        wanted = make(self._special(last, defaults[0]), self._special(first, defaults[1]))
        known = self._backend.post_processor
        if known is None or _ends(known) != _ends(wanted):
            self._backend.post_processor = wanted
            ids, _ = _ends(wanted)
            named = first in self._config or last in self._config
            self._note(f"texts stand between the ids {ids[0]} and {ids[-1]}", named=named)

    def _normalize(self, wanted: Any) -> None:
        from tokenizers import normalizers

        known = self._backend.normalizer
        if known is not None and type(known) is not type(wanted):
            self._backend.normalizer = normalizers.Sequence([]) if wanted is None else wanted
            self._note("the normalizer")

    def _cut(self, wanted: Any) -> None:
        known = self._backend.pre_tokenizer
        if known is None or known.__getstate__() != wanted.__getstate__():
            self._backend.pre_tokenizer = wanted
            self._note("the pre-tokenizer")

    def _special(self, key: str, default: str) -> tuple[str, int]:
        token = token_text(self._config.get(key)) or default
        index = self._backend.token_to_id(token) if isinstance(token, str) else None
        if index is None:
            raise TokenizerError(f"the vocabulary must hold the {key} {token!r}, it does not")
        return token, index

    def _note(self, what: str, *, named: bool = False) -> None:
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
