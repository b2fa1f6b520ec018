"""From a model folder to the parts of an engine, with the origin of every decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minibert.arguments import is_integer
from minibert.config import EncoderConfig
from minibert.errors import ConfigError, InputError
from minibert.pooling import Step
from minibert.sentence_config import (
    SentenceConfig,
    read_modules,
    read_sentence_config,
    read_steps,
)
from minibert.tokenizer import Tokenizer
from minibert.tokenizer_files import TruncationSide
from minibert.weights.checkpoint import EncoderWeights, load_encoder

if TYPE_CHECKING:
    from minibert.kernels.cpu.background import Background


class OpenedModel(NamedTuple):
    """What a folder says, read and checked, but for its tokenizer, which takes longest.

    Attributes:
        encoder_folder: where config.json, the weights and the tokenizer are.
        pooling_origin: where the steps came from.
    """

    folder: Path
    encoder_folder: Path
    config: EncoderConfig
    weights: EncoderWeights
    sentence: SentenceConfig
    steps: tuple[Step, ...]
    pooling_origin: str


@dataclass(slots=True)
class LoadedModel:
    """Everything that a folder says, read and checked.

    Attributes:
        truncation_side: which end of a longer text is cut off.
        origins: decision -> where it came from, in the order of `explain`.
    """

    folder: Path
    config: EncoderConfig
    weights: EncoderWeights
    tokenizer: Tokenizer
    sentence: SentenceConfig
    steps: tuple[Step, ...]
    max_length: int
    truncation_side: TruncationSide
    origins: dict[str, str] = field(default_factory=dict)


def load_model(
    folder: Path,
    *,
    max_length: int | None = None,
    ignore_config_keys: Collection[str] = (),
    layer_by_layer: bool = False,
) -> LoadedModel:
    """Read a sentence-transformers or plain transformers folder.

    Args:
        folder: the model.
        max_length: overrules the files; at most what the position table has.
        ignore_config_keys: keys of config.json known to the caller to be without effect.
        layer_by_layer: as in `load_encoder`.

    Raises:
        CheckpointError: some file is missing, damaged or asks for what is not supported.
        InputError: max_length is out of range.
    """
    opened = open_model(
        folder, ignore_config_keys=ignore_config_keys, layer_by_layer=layer_by_layer
    )
    return add_tokenizer(opened, max_length)


def open_model(
    folder: Path,
    *,
    ignore_config_keys: Collection[str] = (),
    layer_by_layer: bool = False,
    background: Background | None = None,
) -> OpenedModel:
    """Read everything but the tokenizer.

    Args:
        folder: the model.
        ignore_config_keys: as in `load_model`.
        layer_by_layer: as in `load_encoder`.
        background: as in `load_encoder`.

    Raises:
        CheckpointError: as in `load_model`.
    """
    modules = read_modules(folder)
    where = modules.encoder_folder
    config_path = where / "config.json"
    if not config_path.exists():
        raise ConfigError(f"{folder} must be a model folder with config.json, it has none")
    config = EncoderConfig.from_file(config_path, ignore_keys=ignore_config_keys)
    sentence = read_sentence_config(folder, where)
    steps = read_steps(modules, config.hidden_size)
    weights = load_encoder(where, config, layer_by_layer=layer_by_layer, background=background)
    return OpenedModel(folder, where, config, weights, sentence, steps, modules.origin)


def add_tokenizer(
    opened: OpenedModel,
    max_length: int | None = None,
    truncation_side: TruncationSide | None = None,
) -> LoadedModel:
    """Read the tokenizer, and settle how long a text may be and where a longer one is cut.

    Args:
        opened: from `open_model`.
        max_length: as in `load_model`.
        truncation_side: overrules the files.

    Raises:
        CheckpointError: as in `load_model`.
        InputError: as in `load_model`.
    """
    folder, where, config, weights, sentence, steps, pooling_origin = opened
    tokenizer = Tokenizer.from_folder(where, do_lower_case=sentence.do_lower_case)
    limit, limit_origin = _max_length(folder, config, sentence, tokenizer, max_length)
    origins = {
        "pooling": pooling_origin,
        "max_length": limit_origin,
        "truncation_side": "asked for" if truncation_side else tokenizer.files.truncation_origin,
        "tokenizer": tokenizer.files.source,
    }
    side = truncation_side or tokenizer.files.truncation_side
    return LoadedModel(folder, config, weights, tokenizer, sentence, steps, limit, side, origins)


def _max_length(
    folder: Path,
    config: EncoderConfig,
    sentence: SentenceConfig,
    tokenizer: Tokenizer,
    asked: int | None,
) -> tuple[int, str]:
    limit, origin = config.max_tokens, "max_position_embeddings of config.json"
    special = tokenizer.num_special_tokens()
    if asked is not None:
        if not is_integer(asked):
            raise InputError(f"max_length must be a number, got {asked!r}")
        if not special < asked <= limit:
            raise InputError(
                f"max_length must be {special + 1} to {limit}, the positions of this model, "
                f"got {asked}"
            )
        return int(asked), "asked for"
    if sentence.max_seq_length is not None:
        named, where = sentence.max_seq_length, f"max_seq_length of {sentence.length_file}"
    elif tokenizer.files.model_max_length is not None:
        named, where = tokenizer.files.model_max_length, "model_max_length of tokenizer_config.json"
    else:
        named, where = limit, origin
    if named > limit:
        named, where = limit, f"{origin}, below {where}"
    if named <= special:
        raise ConfigError(
            f"{folder}: {where} must exceed the {special} special tokens of a text, got {named}"
        )
    return named, where


def parse_memory(value: int | str | None) -> int | None:
    """Bytes from a number or a text such as "512MB" or "1.5 GiB".

    Raises:
        InputError: not a positive size.
    """
    if value is None:
        return None
    units: Mapping[str, int] = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    }
    text = str(value).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        size = int(float(number) * units[text[len(number) :].strip()])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if isinstance(value, bool) or size < 1:
        raise InputError(f"memory_limit must be bytes or a size such as '512MB', got {value!r}")
    return size
