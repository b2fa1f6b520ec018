"""Tiny random checkpoints of every family, saved by transformers' own classes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
HIDDEN_SIZE = 32
MAX_LENGTH = 64
WORDS = (
    "the a cat dog sat on mat and bread stays soft in paper bag ice lake walk safe sun moon "
    "un ##happy ##ing ##s ##ed run jump river bank of money , . ! ? 你 好 世 界 é"
).split()
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")


def save_tiny(folder: Path, family: str = "bert", **overrides: Any) -> Path:
    """Save a model of two layers and its tokenizer; `overrides` go to the configuration.

    The position table has room for `MAX_LENGTH` tokens in every family.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    roberta = family in _ROBERTA_LIKE
    specials = (
        {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
        if roberta
        else {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
    )
    write_json(
        folder / "tokenizer_config.json",
        {f"{name}_token": token for name, token in specials.items()}
        | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH},
    )
    config_class, model_class = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
        "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
        "camembert": (transformers.CamembertConfig, transformers.CamembertModel),
        "distilbert": (transformers.DistilBertConfig, transformers.DistilBertModel),
        "electra": (transformers.ElectraConfig, transformers.ElectraModel),
    }[family]
    pad_token_id = tokenizer.token_to_id(specials["pad"])
    values: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": pad_token_id,
        "max_position_embeddings": MAX_LENGTH + (pad_token_id + 1 if roberta else 0),
    }
    if family == "distilbert":
        values |= {"dim": HIDDEN_SIZE, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    else:
        values |= {
            "hidden_size": HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        }
    if family == "electra":
        values["embedding_size"] = 16
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class(config_class(**(values | overrides))).save_pretrained(folder)
    return folder


def make_tokenizer(family: str = "bert") -> Tokenizer:
    """A tokenizer of the family's kind: WordPiece, byte-level BPE or Unigram."""
    if family == "roberta":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"]
        merges = [("t", "h"), ("th", "e"), ("c", "a"), ("Ġ", "c"), ("a", "t")]
        tokens[-1:-1] = [left + right for left, right in merges]
        ids = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"])
        )
        tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    elif family in ("xlm-roberta", "camembert"):
        pieces = [*(f"▁{word}" for word in WORDS if word.isascii()), "▁", *_letters(), *"你好世界é"]
        scored = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        scored += [(piece, -float(i % 7) - 1.0) for i, piece in enumerate(dict.fromkeys(pieces))]
        scored.append(("<mask>", 0.0))
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=3))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", 0), ("</s>", 2)],
        )
        tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    else:
        ids = {token: i for i, token in enumerate(vocabulary())}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
        tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def vocabulary() -> list[str]:
    """The WordPiece tokens: specials, words, letters in both places, both cases."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = [f"##{letter}" for letter in _letters()]
    return list(dict.fromkeys([*specials, *WORDS, *_letters(), *inner]))


def _letters() -> list[str]:
    return [chr(code) for first in ("a", "A") for code in range(ord(first), ord(first) + 26)]


def write_json(path: Path, values: object) -> None:
    """Write a JSON file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove tensors of model.safetensors; names with `__` for a dot."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, array in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if array is not None:
            tensors[name] = array
    path.unlink()  # readers may have mapped the old file
    save_file(tensors, path, metadata={"format": "pt"})


def save_sentence_files(folder: Path, **pooling: Any) -> None:
    """Add modules.json with mean pooling and normalisation (or the pooling keys given)."""
    root = "sentence_transformers.models"
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{root}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{root}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{root}.Normalize"},
        ],
    )
    keys = {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode_mean_tokens": True} | pooling
    write_json(folder / "1_Pooling" / "config.json", keys)
