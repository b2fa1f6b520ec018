"""The sentence-transformers files around an encoder: modules, prompts, lengths.

Both generations of the formats are read (modules named `sentence_transformers.models.Pooling` or
`sentence_transformers.sentence_transformer.modules.pooling.Pooling`; `max_seq_length` in
sentence_bert_config.json or `model_max_length` in tokenizer_config.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minibert.config import read_json
from minibert.errors import ConfigError
from minibert.pooling import Normalize, Pooling, Step, load_dense
from minibert.similarity import SIMILARITIES

_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# Names that every model takes, as in sentence-transformers, with a prompt of its own or without.
DEFAULT_PROMPTS = {"query": "", "document": ""}

# Keys of sentence_*_config.json that would have to be honoured where they have a value.
_MUST_BE_EMPTY = (
    "model_args",
    "model_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "config_args",
    "config_kwargs",
    "processing_kwargs",
    "query_length",
    "document_length",
    "query_expansion",
)


@dataclass(frozen=True, slots=True)
class ModuleList:
    """modules.json, resolved.

    Attributes:
        encoder_folder: holds config.json, weights and tokenizer.
        entries: (type, folder) of what follows the encoder; no folder where it is a default.
        origin: for `explain`.
    """

    encoder_folder: Path
    entries: tuple[tuple[str, Path | None], ...]
    origin: str


@dataclass(frozen=True, slots=True)
class SentenceConfig:
    """config_sentence_transformers.json and sentence_*_config.json.

    Attributes:
        prompts: name -> text put before an input.
        default_prompt_name: used where a call names none.
        similarity: one of `SIMILARITIES`.
        truncate_dim: leading dimensions that are kept, None for all.
        max_seq_length: most tokens of a text, None where the files do not say.
        do_lower_case: texts are lower-cased before anything else.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None
    max_seq_length: int | None = None
    do_lower_case: bool = False


def read_modules(folder: Path) -> ModuleList:
    """Read modules.json; without one, mean pooling over the folder's own encoder.

    Raises:
        ConfigError: malformed, a module outside the folder, or one that is not supported.
    """
    path = folder / "modules.json"
    if not path.exists():
        return ModuleList(folder, (("Pooling", None),), "default: no modules.json")
    root = folder.resolve()
    entries: list[tuple[str, Path]] = []
    for entry in read_json(path, kind=list):
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ConfigError(f"{path}: each module must have a type, got {entry!r}")
        if entry.get("kwargs"):
            raise ConfigError(f"{path}: kwargs must be absent, got {entry['kwargs']!r}")
        kind = entry["type"].rsplit(".", 1)[-1]
        if not entry["type"].startswith("sentence_transformers."):
            raise ConfigError(
                f"{path}: modules must come from sentence_transformers, got {entry['type']!r}: "
                "a model's own code is never run"
            )
        inside = entry.get("path", "")
        if not isinstance(inside, str) or "\0" in inside:
            raise ConfigError(f"{path}: path must be the name of a folder, got {inside!r}")
        where = folder / inside
        if not where.resolve().is_relative_to(root):
            raise ConfigError(f"{path}: modules must lie inside the folder, got {inside!r}")
        entries.append((kind, where))
    if not entries or entries[0][0] != "Transformer":
        found = [kind for kind, _ in entries]
        raise ConfigError(f"{path}: the first module must be a Transformer, got {found}")
    for kind, _ in entries[1:]:
        if kind not in ("Pooling", "Dense", "Normalize", "Dropout"):
            raise ConfigError(
                f"{path}: modules must be Transformer, Pooling, Dense, Normalize or Dropout, "
                f"got {kind}"
            )
    if sum(kind == "Pooling" for kind, _ in entries) > 1 or (
        len(entries) > 1 and entries[1][0] != "Pooling"
    ):
        found = [kind for kind, _ in entries]
        raise ConfigError(f"{path}: one Pooling must follow the Transformer, got {found}")
    after: tuple[tuple[str, Path | None], ...] = tuple(entries[1:])
    return ModuleList(entries[0][1], after or (("Pooling", None),), "modules.json")


def read_steps(modules: ModuleList, hidden_size: int) -> tuple[Step, ...]:
    """Read the folders of the modules that follow the encoder.

    Raises:
        ConfigError: a folder's config.json is refused.
        WeightsError: a Dense module's tensors are refused.
    """
    steps: list[Step] = []
    width = hidden_size
    for kind, where in modules.entries:
        if kind == "Pooling":
            pooling = Pooling()
            if where is not None:
                path = where / "config.json"
                values = read_json(path)
                pooling = Pooling.from_dict(values, hidden_size=hidden_size, source=str(path))
            steps.append(pooling)
            width = hidden_size * len(pooling.modes)
        elif kind == "Dense" and where is not None:
            dense = load_dense(where, width)
            steps.append(dense)
            width = dense.weights.weight.shape[0]
        elif kind == "Normalize":
            _check_normalize(where)
            steps.append(Normalize())
    return tuple(steps)


def _check_normalize(where: Path | None) -> None:
    """Refuse a Normalize of something else than the embedding; its folder may be absent."""
    path = None if where is None else where / "config.json"
    if path is None or not path.exists():
        return
    values = read_json(path)
    names = ("module_input_name", "module_output_name")
    _refuse_unknown(path, values, set(names))
    for key in names:
        if values.get(key) not in (None, "sentence_embedding"):
            raise ConfigError(f"{path}: {key} must be sentence_embedding, got {values[key]!r}")


def read_sentence_config(folder: Path, encoder_folder: Path) -> SentenceConfig:
    """Read the settings of a sentence-embedding model.

    Args:
        folder: holds config_sentence_transformers.json, if there is one.
        encoder_folder: holds sentence_bert_config.json or its like, if there is one.

    Raises:
        ConfigError: an unknown key, or a value that cannot be honoured.
    """
    outer = folder / "config_sentence_transformers.json"
    values = read_json(outer) if outer.exists() else {}
    known = {
        "__version__",
        "prompts",
        "default_prompt_name",
        "similarity_fn_name",
        "truncate_dim",
        "model_type",
    }
    _refuse_unknown(outer, values, known)
    model_type = values.get("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        raise ConfigError(f"{outer}: model_type must be SentenceTransformer, got {model_type!r}")
    prompts = values.get("prompts") or {}
    if not isinstance(prompts, dict) or any(not isinstance(p, str) for p in prompts.values()):
        raise ConfigError(f"{outer}: prompts must map names to texts, got {prompts!r}")
    default = values.get("default_prompt_name")
    named = {*DEFAULT_PROMPTS, *prompts}
    if default is not None and (not isinstance(default, str) or default not in named):
        raise ConfigError(
            f"{outer}: default_prompt_name must be one of {sorted(named)}, got {default!r}"
        )
    similarity = values.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise ConfigError(
            f"{outer}: similarity_fn_name must be one of {', '.join(SIMILARITIES)}, "
            f"got {similarity!r}"
        )
    max_seq_length, do_lower_case = _read_transformer_config(encoder_folder)
    return SentenceConfig(
        prompts=prompts,
        default_prompt_name=default,
        similarity=similarity,
        truncate_dim=_length(outer, "truncate_dim", values.get("truncate_dim")),
        max_seq_length=max_seq_length,
        do_lower_case=do_lower_case,
    )


def _read_transformer_config(folder: Path) -> tuple[int | None, bool]:
    path = next((folder / n for n in _TRANSFORMER_CONFIGS if (folder / n).exists()), None)
    if path is None:
        return None, False
    values = read_json(path)
    known = {
        "max_seq_length",
        "do_lower_case",
        "transformer_task",
        "modality_config",
        "module_output_name",
        "unpad_inputs",  # how they compute, not what: everything is unpadded here
        *_MUST_BE_EMPTY,
    }
    _refuse_unknown(path, values, known)
    for key in _MUST_BE_EMPTY:
        if values.get(key):
            raise ConfigError(f"{path}: {key} must be empty, got {values[key]!r}")
    expected: tuple[tuple[str, Any], ...] = (
        ("transformer_task", "feature-extraction"),
        ("module_output_name", "token_embeddings"),
        (
            "modality_config",
            {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        ),
    )
    for key, only in expected:
        if values.get(key, only) != only:
            raise ConfigError(f"{path}: {key} must be {only!r}, got {values[key]!r}")
    lower = values.get("do_lower_case", False)
    if not isinstance(lower, bool):
        raise ConfigError(f"{path}: do_lower_case must be a boolean, got {lower!r}")
    return _length(path, "max_seq_length", values.get("max_seq_length")), lower


def _length(path: Path, key: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{path}: {key} must be a number of at least 1, got {value!r}")
    return value


def _refuse_unknown(path: Path, values: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{path}: keys must be among {sorted(known)}, got {unknown}")
