"""Models to measure: a folder, the small real one, or BERT-base's shape with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from minibert.cli.fetch import MODEL_NAME, obtain_model

BERT_BASE = "bert-base"
MINILM = MODEL_NAME
MODEL_NAMES = (MINILM, BERT_BASE)


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the work of a forward pass.

    Attributes:
        max_length: most tokens of a text.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    max_length: int


def find(name: str, models_folder: Path, say: Callable[[str], None]) -> Path:
    """The folder of a model.

    Args:
        name: one of `MODEL_NAMES`, or a folder.
        models_folder: where the named ones are kept, usually build/models.
        say: receives a line before slow steps.
    """
    if name == MINILM:
        return obtain_model(models_folder, say)
    if name == BERT_BASE:
        target = models_folder / BERT_BASE
        if not target.is_dir():
            say(f"writing {target.name} with random weights")
            write_bert_base(target, obtain_model(models_folder, say))
        return target
    return Path(name)


def shape_of(folder: Path) -> Shape:
    """The shape that a folder's configuration gives.

    Raises:
        ValueError: it does not name the sizes in BERT's words.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit = config.get("max_position_embeddings")
    sentence = folder / "sentence_bert_config.json"
    if sentence.is_file():
        limit = json.loads(sentence.read_text(encoding="utf-8")).get("max_seq_length") or limit
    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    missing = [name for name in sizes if name not in config]
    if missing or limit is None:
        missing = missing or ["max_position_embeddings"]
        raise ValueError(f"{folder}/config.json must have {', '.join(missing)}")
    hidden, layers, intermediate, heads = (int(config[name]) for name in sizes)
    return Shape(hidden, layers, intermediate, heads, int(limit))


def token_counter(folder: Path) -> Callable[..., list[int]]:
    """Counts tokens of texts, special tokens included and uncut."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Any) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    return count


def write_bert_base(folder: Path, model: Path, *, num_hidden_layers: int = 12) -> None:
    """A model of BERT-base's shape: random weights, the tokenizer and modules of another model.

    Args:
        folder: to write; appears complete or not at all.
        model: a sentence-transformers folder with WordPiece of BERT's English vocabulary.
        num_hidden_layers: BERT-base has 12.
    """
    scratch = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(model, scratch, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.update(
        hidden_size=768,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    (scratch / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    pooling = scratch / "1_Pooling" / "config.json"
    options = json.loads(pooling.read_text(encoding="utf-8"))
    options["word_embedding_dimension"] = 768
    pooling.write_text(json.dumps(options, indent=2), encoding="utf-8")
    save_file(_random_weights(config), scratch / "model.safetensors", {"format": "pt"})
    scratch.rename(folder)


def _random_weights(config: dict[str, Any]) -> dict[str, Any]:
    """Names and shapes of a BertModel; BERT's own initialisation (standard deviation 0.02)."""
    rng = np.random.default_rng(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights: dict[str, Any] = {}

    def matrix(name: str, rows: int, cols: int) -> None:
        weights[name] = 0.02 * rng.standard_normal((rows, cols), np.float32)

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrix(f"{name}.weight", outputs, inputs)
        weights[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def layer_norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(hidden, np.float32)
        weights[f"{name}.bias"] = np.zeros(hidden, np.float32)

    matrix("embeddings.word_embeddings.weight", config["vocab_size"], hidden)
    matrix("embeddings.position_embeddings.weight", config["max_position_embeddings"], hidden)
    matrix("embeddings.token_type_embeddings.weight", config["type_vocab_size"], hidden)
    layer_norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        layer_norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    return weights
