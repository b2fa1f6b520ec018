"""EncoderConfig: the architecture of a checkpoint, read from config.json.

Every key of the file is used, known to be without effect on inference, or refused by name; nothing
is guessed. What a family calls differently (DistilBERT's `dim`, `n_layers`) is a table here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minibert.arguments import is_integer
from minibert.compression_config import read_quantization, read_sparsity
from minibert.errors import ConfigError
from minibert.ops.interface import Activation
from minibert.weights.sparse_stored import Sparsity

SUPPORTED_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""`hidden_act` in config.json -> what is computed."""

_ROBERTA_LIKE = frozenset({"roberta", "xlm-roberta", "camembert"})

# Field of EncoderConfig -> key of config.json.
_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_act": "hidden_act",
    "pad_token_id": "pad_token_id",
}
_DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_act": "activation",
    "pad_token_id": "pad_token_id",
}

# Defaults of transformers' configuration classes, for the keys that old checkpoints leave out.
_DEFAULTS: dict[str, Any] = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
}

# Keys without effect on the forward pass of an encoder, or read elsewhere (labels, heads).
_WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures
    attention_dropout attention_probs_dropout_prob auto_map begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id directionality
    dropout dtype embedding_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label
    initializer_range keys_to_ignore_at_inference label2id language layer_norm_eps length_penalty
    mask_token_id max_length model_max_length name num_labels output_attentions
    output_hidden_states output_past pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type prefix problem_type pruned_heads
    qa_dropout remove_invalid_values return_dict return_dict_in_generate
    sbert_ce_default_activation_function sentence_transformers sep_token_id seq_classif_dropout
    sinusoidal_pos_embds summary_activation summary_first_dropout summary_last_dropout
    summary_type summary_use_proj suppress_tokens task_specific_params tie_encoder_decoder
    tie_word_embeddings tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version type_vocab_size unk_token_id use_bfloat16 use_cache use_return_dict
    attn_implementation output_scores quantization_config sparsity_config layer_shapes
    bad_words_ids cross_attention_hidden_size diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences repetition_penalty temperature tf_legacy_loss top_k top_p typical_p
    _num_labels emb_size eos_token_ids is_matryoshka matryoshka_dimensions tie_weights_ xla_device
    """.split()
)

# Keys that change the computation: the only values that this engine computes.
_FIXED: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
    "compression_config": (None,),
}


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The shape and the constants of one encoder.

    Field names are the checkpoint's (BERT's); `embedding_size` differs from `hidden_size` where the
    embeddings are projected (ELECTRA). `first_position` is the position id of a text's first token.
    `layer_shapes` holds each layer's heads and feed-forward width where `minibert prune` made them
    differ, `quantization` what `minibert quantize` did, `sparsity` what `minibert sparsify` did;
    they are empty for other checkpoints.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: Activation
    pad_token_id: int | None
    embedding_size: int
    first_position: int = 0
    num_labels: int = 0
    id2label: Mapping[int, str] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()
    pruned_heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    layer_shapes: tuple[tuple[int, int], ...] = ()
    quantization: Mapping[str, Any] | None = None
    sparsity: Sparsity | None = None

    def __post_init__(self) -> None:
        """Check ranges and divisibility.

        Raises:
            ConfigError: naming the field and its rule.
        """
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "embedding_size",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}, got {self.hidden_size}"
            )
        for name in ("type_vocab_size", "num_labels"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for layer, heads in self.pruned_heads.items():
            inside = all(0 <= head < self.num_attention_heads for head in heads)
            if not 0 <= layer < self.num_hidden_layers or not inside:
                raise ConfigError(
                    f"pruned_heads must name layers below {self.num_hidden_layers} and heads below "
                    f"{self.num_attention_heads}, got {layer}: {list(heads)}"
                )
            if len(set(heads)) == self.num_attention_heads:
                raise ConfigError(f"pruned_heads must leave a head, got {layer}: {list(heads)}")
        if self.layer_shapes and len(self.layer_shapes) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_shapes must have num_hidden_layers = {self.num_hidden_layers} entries, "
                f"got {len(self.layer_shapes)}"
            )
        if not 0.0 <= self.layer_norm_eps < 1.0:
            raise ConfigError(f"layer_norm_eps must be in [0, 1), got {self.layer_norm_eps}")
        if self.max_tokens < 1:
            raise ConfigError(
                f"max_position_embeddings must exceed the first position {self.first_position}, "
                f"got {self.max_position_embeddings}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """Most tokens that a text can have, special tokens included."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_file(cls, path: Path, *, ignore_keys: Collection[str] = ()) -> EncoderConfig:
        """Read config.json.

        Args:
            path: the file.
            ignore_keys: keys that the caller knows to be without effect.

        Raises:
            ConfigError: no such file, not JSON, or `from_dict` refuses it.
        """
        return cls.from_dict(read_json(path), ignore_keys=ignore_keys, source=str(path))

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        *,
        ignore_keys: Collection[str] = (),
        source: str = "config.json",
    ) -> EncoderConfig:
        """Use every key of a configuration, or refuse it.

        Raises:
            ConfigError: an unsupported model_type, an unknown key, a missing key, a wrong type, or
                a value that this engine does not compute.
        """
        model_type = values.get("model_type")
        if model_type not in SUPPORTED_MODEL_TYPES:
            raise ConfigError(
                f"{source}: model_type must be one of {', '.join(SUPPORTED_MODEL_TYPES)}, "
                f"got {model_type!r}"
            )
        keys = _DISTILBERT_KEYS if model_type == "distilbert" else _BERT_KEYS
        _refuse_unknown(values, set(keys.values()), ignore_keys, source)

        def number(name: str, kind: type[int] | type[float]) -> Any:
            key = keys.get(name)
            value = values.get(key) if key else None
            if value is None:
                value = _DEFAULTS.get(name)
            if value is None:
                raise ConfigError(f"{source}: {key or name} must be given, it is missing")
            good = isinstance(value, int) or (kind is float and isinstance(value, float))
            if not good or isinstance(value, bool):
                raise ConfigError(f"{source}: {key} must be a number, got {value!r}")
            return kind(value)

        hidden_act = values.get(keys["hidden_act"], _DEFAULTS["hidden_act"])
        if not isinstance(hidden_act, str) or hidden_act not in ACTIVATIONS:
            raise ConfigError(
                f"{source}: {keys['hidden_act']} must be one of {', '.join(ACTIVATIONS)}, "
                f"got {hidden_act!r}"
            )
        pad_token_id = values.get("pad_token_id", 1 if model_type in _ROBERTA_LIKE else 0)
        if pad_token_id is not None and (
            not is_integer(pad_token_id) or not 0 <= pad_token_id < number("vocab_size", int)
        ):
            raise ConfigError(
                f"{source}: pad_token_id must be an id below vocab_size, got {pad_token_id!r}"
            )
        if model_type in _ROBERTA_LIKE and pad_token_id is None:
            raise ConfigError(
                f"{source}: pad_token_id must be given, positions of {model_type} start after it"
            )
        hidden_size = number("hidden_size", int)
        embedding_size = values.get("embedding_size") if model_type == "electra" else None
        if embedding_size is not None and not is_integer(embedding_size):
            raise ConfigError(f"{source}: embedding_size must be a number, got {embedding_size!r}")
        try:
            return cls(
                model_type=model_type,
                vocab_size=number("vocab_size", int),
                hidden_size=hidden_size,
                num_hidden_layers=number("num_hidden_layers", int),
                num_attention_heads=number("num_attention_heads", int),
                intermediate_size=number("intermediate_size", int),
                max_position_embeddings=number("max_position_embeddings", int),
                type_vocab_size=0 if model_type == "distilbert" else number("type_vocab_size", int),
                layer_norm_eps=number("layer_norm_eps", float),
                hidden_act=ACTIVATIONS[hidden_act],
                pad_token_id=pad_token_id,
                embedding_size=hidden_size if embedding_size is None else embedding_size,
                first_position=int(pad_token_id or 0) + 1 if model_type in _ROBERTA_LIKE else 0,
                num_labels=_num_labels(values, source),
                id2label=_id2label(values, source),
                architectures=_architectures(values, source),
                pruned_heads=_pruned_heads(values, source),
                layer_shapes=_layer_shapes(values, source),
                quantization=read_quantization(values, source),
                sparsity=read_sparsity(values, source),
            )
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}".replace(f"{source}: {source}", source)) from None


def config_key(model_type: str, name: str) -> str:
    """What config.json calls a field of EncoderConfig in this family."""
    return (_DISTILBERT_KEYS if model_type == "distilbert" else _BERT_KEYS)[name]


def read_json(path: Path, *, kind: type = dict) -> Any:
    """Read a JSON file that must hold an object (or, with `kind=list`, an array).

    Raises:
        ConfigError: no such file, unreadable, not UTF-8, not JSON, or another kind of value.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} must exist, it is missing") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: encoding, JSON, numbers
        raise ConfigError(f"{path} must be readable JSON: {error}") from None
    if not isinstance(values, kind):
        wanted = "an object" if kind is dict else "an array"
        raise ConfigError(f"{path} must hold {wanted}, got {type(values).__name__}")
    return values


def _refuse_unknown(
    values: Mapping[str, Any], used: set[str], ignore_keys: Collection[str], source: str
) -> None:
    for key, allowed in _FIXED.items():
        if key in values and key not in ignore_keys and values[key] not in allowed:
            raise ConfigError(f"{source}: {key} must be {allowed[0]!r}, got {values[key]!r}")
    known = used | _WITHOUT_EFFECT | set(_FIXED) | {"model_type"} | set(ignore_keys)
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{source}: {', '.join(unknown)} must be known to this engine to be honoured; if it "
            f"has no effect on inference, pass ignore_config_keys={unknown!r}"
        )


def _id2label(values: Mapping[str, Any], source: str) -> dict[int, str]:
    labels = values.get("id2label") or {}
    try:
        return {int(key): str(label) for key, label in labels.items()}
    except (AttributeError, ValueError):
        raise ConfigError(
            f"{source}: id2label must map numbers to labels, got {labels!r}"
        ) from None


def _num_labels(values: Mapping[str, Any], source: str) -> int:
    count = values.get("num_labels")
    if count is None:
        return len(values.get("id2label") or ())
    if not is_integer(count):
        raise ConfigError(f"{source}: num_labels must be a number, got {count!r}")
    return count


def _architectures(values: Mapping[str, Any], source: str) -> tuple[str, ...]:
    names = values.get("architectures") or []
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: architectures must be a list of names, got {names!r}")
    return tuple(names)


def _pruned_heads(values: Mapping[str, Any], source: str) -> dict[int, tuple[int, ...]]:
    pruned = values.get("pruned_heads") or {}
    try:
        return {int(layer): tuple(int(head) for head in heads) for layer, heads in pruned.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(
            f"{source}: pruned_heads must map layers to heads, got {pruned!r}"
        ) from None


def _layer_shapes(values: Mapping[str, Any], source: str) -> tuple[tuple[int, int], ...]:
    shapes = values.get("layer_shapes") or []
    good = isinstance(shapes, list) and all(
        isinstance(shape, list) and len(shape) == 2 and all(is_integer(n) and n > 0 for n in shape)
        for shape in shapes
    )
    if not good:
        raise ConfigError(
            f"{source}: layer_shapes must list [heads, intermediate_size] of every layer, "
            f"got {shapes!r:.200}"
        )
    return tuple((heads, width) for heads, width in shapes)
