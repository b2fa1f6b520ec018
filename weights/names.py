"""Where each parameter of the encoder stands in a checkpoint: one table per layout.

Canonical names are those of `EncoderWeights`; a table maps them to the checkpoint's. Everything
that is not in the table is either listed as deliberately unused or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class NameTable(NamedTuple):
    """Names of one layout.

    Attributes:
        prefixes: what may stand before every encoder name, tried in this order.
        embeddings: canonical name -> checkpoint name.
        layer: canonical name -> checkpoint name within a layer; `{i}` is the layer.
        projection: the embedding projection, where the family has one.
        unused: patterns of tensors of this family that the encoder does not read.
    """

    prefixes: tuple[str, ...]
    embeddings: Mapping[str, str]
    layer: Mapping[str, str]
    projection: str | None
    unused: tuple[re.Pattern[str], ...]


_BERT_EMBEDDINGS = {
    "word": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "token_type": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm",
}
_BERT_LAYER = {
    "query": "encoder.layer.{i}.attention.self.query",
    "key": "encoder.layer.{i}.attention.self.key",
    "value": "encoder.layer.{i}.attention.self.value",
    "attention_output": "encoder.layer.{i}.attention.output.dense",
    "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "intermediate": "encoder.layer.{i}.intermediate.dense",
    "output": "encoder.layer.{i}.output.dense",
    "output_norm": "encoder.layer.{i}.output.LayerNorm",
}
_DISTILBERT_EMBEDDINGS = {k: v for k, v in _BERT_EMBEDDINGS.items() if k != "token_type"}
_DISTILBERT_LAYER = {
    "query": "transformer.layer.{i}.attention.q_lin",
    "key": "transformer.layer.{i}.attention.k_lin",
    "value": "transformer.layer.{i}.attention.v_lin",
    "attention_output": "transformer.layer.{i}.attention.out_lin",
    "attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "intermediate": "transformer.layer.{i}.ffn.lin1",
    "output": "transformer.layer.{i}.ffn.lin2",
    "output_norm": "transformer.layer.{i}.output_layer_norm",
}

# Buffers that older versions saved, the pooler, and the heads of the family's task classes.
_COMMON_UNUSED = (
    r"(\w+\.)?embeddings\.(position_ids|token_type_ids)",
    r"(\w+\.)?pooler\.dense\.(weight|bias)",
    r"(classifier|qa_outputs|qa_output)\.(weight|bias)",
)


def _table(
    prefix: str,
    *more_unused: str,
    embeddings: Mapping[str, str] = _BERT_EMBEDDINGS,
    layer: Mapping[str, str] = _BERT_LAYER,
    projection: str | None = None,
) -> NameTable:
    return NameTable(
        prefixes=("", f"{prefix}."),
        embeddings=embeddings,
        layer=layer,
        projection=projection,
        unused=tuple(re.compile(pattern) for pattern in (*_COMMON_UNUSED, *more_unused)),
    )


_ROBERTA = _table("roberta", r"lm_head\..+", r"classifier\.(dense|out_proj)\.(weight|bias)")

NAME_TABLES: Mapping[str, NameTable] = {
    "bert": _table("bert", r"cls\..+"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _table(
        "distilbert",
        r"(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier)\.(weight|bias)",
        embeddings=_DISTILBERT_EMBEDDINGS,
        layer=_DISTILBERT_LAYER,
    ),
    "electra": _table(
        "electra",
        r"(discriminator_predictions|generator_predictions|generator_lm_head)\..+",
        r"classifier\.(dense|out_proj)\.(weight|bias)",
        r"sequence_summary\..+",
        projection="embeddings_project",
    ),
}

# Names of TensorFlow-era checkpoints for the two parameters of a LayerNorm.
LEGACY_NORM_NAMES = {"weight": "gamma", "bias": "beta"}
