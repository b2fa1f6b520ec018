"""A trained encoder of BERT-base's shape, from the weights of all-mpnet-base-v2.

    python -m benchmarks.base_model FOLDER_OF_MPNET build/models/mpnet-without-bias

MPNet is BERT with one addition: a bias on the attention's scores by relative position, which no
family that minibert runs has. The model written here has every other weight of the original and no
such bias, as a `roberta` checkpoint (the same layers, positions counted from 2). It is therefore
*not* all-mpnet-base-v2; what it is for is to be compressed: twelve trained layers of width 768
whose heads, neurons and outliers are those that training made. With `--compare` the script prints
how far its vectors are from the original's (transformers and torch are needed for that).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from minibert.compress.texts import split_texts
from minibert.engine import Engine
from minibert.fidelity import compare

LEFT_OUT = "encoder.relative_attention_bias.weight"
_RENAMED = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}
_COPIED = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def roberta_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """MPNet's tensors under the names of `RobertaModel`, without the relative position bias."""
    found: dict[str, Any] = {}
    for name, values in tensors.items():
        if name in (LEFT_OUT, "embeddings.position_ids"):
            continue
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        found[name] = values
    width = tensors["embeddings.word_embeddings.weight"].shape[1]
    found["embeddings.token_type_embeddings.weight"] = np.zeros((1, width), np.float32)
    return found


def write_base_model(source: Path, target: Path) -> None:
    """Write the model; the folder appears complete or not at all.

    Args:
        source: all-mpnet-base-v2 with safetensors, as sentence-transformers publishes it.
        target: folder to write.

    Raises:
        ValueError: `source` is no MPNet.
        FileExistsError: `target` is there.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "mpnet":
        raise ValueError(f"{source} must be of model_type mpnet, got {config.get('model_type')!r}")
    if target.exists():
        raise FileExistsError(f"{target} is there already")
    scratch = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, scratch / name)
    (scratch / "1_Pooling").mkdir()
    shutil.copyfile(source / "1_Pooling" / "config.json", scratch / "1_Pooling" / "config.json")
    del config["relative_attention_num_buckets"]
    config.update(model_type="roberta", architectures=["RobertaModel"], type_vocab_size=1)
    (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = roberta_tensors(load_file(source / "model.safetensors"))
    save_file(tensors, scratch / "model.safetensors", {"format": "pt"})
    scratch.rename(target)


def original_vectors(source: Path, texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """What sentence-transformers makes of the texts with the original, bias included."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts)), np.float32)


def main() -> None:
    """Write, and compare where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--compare", action="store_true", help="with the original's vectors")
    chosen = parser.parse_args()
    if not chosen.target.is_dir():
        write_base_model(chosen.source, chosen.target)
    if not chosen.compare:
        return
    texts = split_texts(None).reporting
    with Engine.from_pretrained(str(chosen.target)) as engine:
        found = compare(original_vectors(chosen.source, texts), engine.encode(texts))
    print(f"{len(texts)} texts, against the original with its relative position bias: {found}")


if __name__ == "__main__":
    main()
