"""The files of a checkpoint's tokenizer: tokenizer.json or vocab.txt, and the settings beside it.

As transformers reads them: the class that a settings file names overrules most of what
tokenizer.json says (tokenizer_classes.py), and tokens may be added by files of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from minibert.config import read_json
from minibert.errors import ConfigError, TokenizerError
from minibert.tokenizer_classes import (
    WORDPIECE_CLASSES,
    find_class,
    follow_class,
    named_class,
    token_text,
)

if TYPE_CHECKING:
    import tokenizers

TruncationSide = Literal["right", "left"]

_NAMED_TOKENS = tuple(f"{name}_token" for name in "bos eos unk sep pad cls mask".split())
_TOKENS_OF_BERT = (
    ("unk_token", "[UNK]"),
    ("cls_token", "[CLS]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("mask_token", "[MASK]"),
)
_MORE_TOKENS = ("additional_special_tokens", "extra_special_tokens")
_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_NO_LIMIT = 10**9  # tokenizer_config.json writes huge numbers where it knows no limit


class TokenizerFiles(NamedTuple):
    """What the files say.

    Attributes:
        backend: with the truncation and padding of tokenizer.json.
        source: the file that the backend was read from.
        model_max_length: most tokens of a text, None where no file names a limit.
        truncation_side: which end of a longer text is cut off.
        truncation_origin: what names that side.
        notes: settings that overrule the source, for `explain`.
    """

    backend: tokenizers.Tokenizer
    source: str
    model_max_length: int | None
    truncation_side: TruncationSide
    truncation_origin: str
    notes: list[str]


def read_tokenizer(folder: Path, *, do_lower_case: bool = False) -> TokenizerFiles:
    """Load tokenizer.json, or build a WordPiece tokenizer from vocab.txt.

    Args:
        folder: the checkpoint.
        do_lower_case: lower-case every text first (sentence_*_config.json asks for it).

    Raises:
        TokenizerError: neither file is there, a file is damaged, vocab.txt is of another class than
            BERT's, or an added token has another id than its file says.
        ConfigError: a settings file is not JSON, or a setting has a wrong type.
    """
    path = folder / "tokenizer_config.json"
    config = _read_if_there(path)
    if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")  # its older name
    if "added_tokens_decoder" not in config:  # files before it was there
        config |= _read_if_there(folder / "special_tokens_map.json")
    _check_config(path, config)
    model = {} if config.get("tokenizer_class") else _read_if_there(folder / "config.json")
    backend, source = _load_backend(folder, config, model)
    _add_tokens(backend, folder, config)
    overruled = follow_class(backend, find_class(config, model), config, source=folder / source)
    notes = overruled if source == "tokenizer.json" else []  # vocab.txt says nothing of that
    if do_lower_case:
        notes += _lower_first(backend)
    limit = config.get("model_max_length")
    most = None if limit is None or limit >= _NO_LIMIT else int(limit)
    return TokenizerFiles(backend, source, most, *_truncation(backend, config), notes)


def _read_if_there(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(path) if path.exists() else {}
    return values


def _check_config(path: Path, config: dict[str, Any]) -> None:
    for key, allowed in (
        ("do_lower_case", (True, False)),
        ("strip_accents", (True, False, None)),
        ("tokenize_chinese_chars", (True, False)),
        ("add_prefix_space", (True, False, None)),
    ):
        if key in config and not any(config[key] is value for value in allowed):
            raise ConfigError(f"{path}: {key} must be a boolean, got {config[key]!r}")
    side = config.get("truncation_side", "right")
    if side not in get_args(TruncationSide):
        raise ConfigError(f"{path}: truncation_side must be right or left, got {side!r}")
    limit = config.get("model_max_length")
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (is_number and limit >= 1):
        raise ConfigError(f"{path}: model_max_length must be at least 1, got {limit!r}")


def _truncation(
    backend: tokenizers.Tokenizer, config: dict[str, Any]
) -> tuple[TruncationSide, str]:
    """The side on which texts are cut, and what names it: transformers' order."""
    side: TruncationSide
    if "truncation_side" in config:
        side = config["truncation_side"]
        return side, "truncation_side of tokenizer_config.json"
    if backend.truncation is not None:
        side = backend.truncation["direction"]
        return side, "truncation of tokenizer.json"
    return "right", "default"


def _load_backend(
    folder: Path, config: dict[str, Any], model: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, str]:
    import tokenizers  # while weights are laid out in the background

    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file)), "tokenizer.json"
        except Exception as error:  # the Rust side raises bare Exception
            raise TokenizerError(f"{file} must be a sound tokenizer file: {error}") from None
    vocab = folder / "vocab.txt"
    if vocab.is_file():
        _check_class(folder, config, model)
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


def _check_class(folder: Path, config: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse vocab.txt of a class that cuts words in another way, as transformers chooses it."""
    if find_class(config, model) not in WORDPIECE_CLASSES:
        named, kind = named_class(config, model), model.get("model_type")
        found = repr(named) if named else f"model_type {kind!r} without a tokenizer_class"
        raise TokenizerError(
            f"{folder}: tokenizer_class must be one of {', '.join(WORDPIECE_CLASSES)} where there "
            f"is vocab.txt and no tokenizer.json, got {found}"
        )


def _from_vocab(vocab: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Its words; what the class makes around them is added by `follow_class`."""
    try:
        tokens = vocab.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{vocab} must be readable UTF-8: {error}") from None
    if tokens and tokens[-1] == "":
        tokens.pop()
    ids = {token.rstrip("\r"): i for i, token in enumerate(tokens)}

    names = [token_text(config.get(key, default)) for key, default in _TOKENS_OF_BERT]
    special = [name for name in names if isinstance(name, str) and name in ids]
    unknown = names[0]
    if unknown not in special:
        raise TokenizerError(f"{vocab} must hold the unk_token {unknown!r}, it does not")

    import tokenizers
    from tokenizers import decoders, models

    backend = tokenizers.Tokenizer(
        models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=100)
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(special)
    return backend


def _contents(tokens: Any) -> list[Any]:
    return [*map(token_text, tokens.values() if isinstance(tokens, dict) else tokens or ())]


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens that other files than tokenizer.json and vocab.txt name.

    They are those of added_tokens_decoder in tokenizer_config.json or, where that is not there, of
    added_tokens.json; then the lists of more special tokens.
    """
    decoder = config.get("added_tokens_decoder")
    path = folder / ("added_tokens.json" if decoder is None else "tokenizer_config.json")
    values = _read_if_there(path) if decoder is None else decoder
    if not values and not any(config.get(key) for key in _MORE_TOKENS):
        return
    try:
        wanted, more = _added_tokens(values, config, by_id=decoder is not None)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: added tokens must be texts with ids: {error}") from None
    here = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for _, token in wanted if token.content not in here])
    here |= {token.content for _, token in wanted}
    backend.add_tokens([token for token in more if token.content not in here])
    for index, token in wanted:
        found = backend.token_to_id(token.content)
        if found != index:
            raise TokenizerError(
                f"{path}: {token.content!r} must have the id {found}, as the other files have it, "
                f"got {index}"
            )


def _added_tokens(
    values: Any, config: dict[str, Any], *, by_id: bool
) -> tuple[list[tuple[int, tokenizers.AddedToken]], list[tokenizers.AddedToken]]:
    """Tokens with their ids, in their order, and those that take the ids after them.

    Args:
        values: id -> token and its rules, or (not `by_id`) token -> id.
        config: names the special tokens.
        by_id: which of the two.
    """
    from tokenizers import AddedToken

    # The older name is left in special_tokens_map.json only, where transformers does not look for
    # special tokens among those of added_tokens.json.
    newer = _contents(config.get("extra_special_tokens"))
    more = newer or _contents(config.get("additional_special_tokens"))
    wanted = []
    if by_id:
        for index, rules in values.items():
            known = {key: value for key, value in rules.items() if key in _TOKEN_FIELDS}
            wanted.append((int(index), AddedToken(known.pop("content", None), **known)))
    else:
        special = {token_text(config.get(key)) for key in _NAMED_TOKENS}
        special |= {*newer}
        for content, index in values.items():
            known_special = content in special
            token = AddedToken(content, normalized=not known_special, special=known_special)
            wanted.append((int(index), token))
    wanted.sort(key=lambda pair: pair[0])
    return wanted, [AddedToken(content, special=True) for content in more]


def _lower_first(backend: tokenizers.Tokenizer) -> list[str]:
    from tokenizers import normalizers

    lower = normalizers.Lowercase()
    known = backend.normalizer
    if getattr(known, "lowercase", None) is True:
        return []
    backend.normalizer = normalizers.Sequence([lower] if known is None else [lower, known])
    return ["texts are lower-cased first (do_lower_case of sentence_*_config.json)"]
