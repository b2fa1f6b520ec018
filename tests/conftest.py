"""Tiny checkpoints saved by transformers' own classes, and the real model."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minibert import Engine
from minibert.ops.cpu import CpuOps
from tests.refusals import save_good
from tests.texts import WORDS

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may use the network by accident

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")

TinyModel = Callable[..., Path]

# Files that build something, the longest first.
BUILDERS = (
    "kernels/cpu/test_sanitized.py",
    "kernels/cuda/test_assembly.py",
    "test_packaging.py",
    "kernels/cpu/test_aarch64.py",
    "kernels/cpu/test_amx_trapped.py",
    "test_compilers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes take files in turn: what takes longest must not begin last."""
    root = Path(__file__).parent
    order = {root / name: place for place, name in enumerate(BUILDERS)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def make_tokenizer(folder: Path, *, roberta: bool) -> int:
    """Write a small WordPiece tokenizer.json; return its vocabulary size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    first, last, pad, unk = (
        ("<s>", "</s>", "<pad>", "<unk>") if roberta else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    )
    specials = [first, pad, last, unk] if roberta else [pad, unk, first, last]
    letters = [prefix + chr(code) for code in range(97, 123) for prefix in ("", "##")]
    tokens = list(dict.fromkeys([*specials, *WORDS.split(), *letters]))
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing((last, ids[last]), (first, ids[first]))
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(tokens)


def make_model(family: str, vocab_size: int, *, seed: int = 0, **overrides: Any) -> Any:
    """A model of transformers' own class, random weights large enough to matter."""
    import torch
    import transformers

    kinds = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
        "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
        "camembert": (transformers.CamembertConfig, transformers.CamembertModel),
        "distilbert": (transformers.DistilBertConfig, transformers.DistilBertModel),
        "electra": (transformers.ElectraConfig, transformers.ElectraModel),
    }
    make_config, make = kinds[family]
    if family == "distilbert":
        shape = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 100}
    else:
        shape = {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 100,
            "type_vocab_size": 2 if family in ("bert", "electra") else 1,
        }
    if family == "electra":
        shape["embedding_size"] = 24
    shape.update(overrides)
    torch.manual_seed(seed)
    config = make_config(
        vocab_size=vocab_size, max_position_embeddings=70, initializer_range=0.3, **shape
    )
    model = make(config).eval()
    with torch.no_grad():  # biases and norms of their own, so that a forgotten one shows
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """`tiny("roberta", dtype="float16")` -> folder of a tiny checkpoint."""
    import torch

    made: dict[tuple[Any, ...], Path] = {}

    def make(family: str = "bert", *, dtype: str = "float32", **overrides: Any) -> Path:
        key = (family, dtype, *sorted(overrides.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            vocab_size = make_tokenizer(folder, roberta=family in FAMILIES[1:4])
            model = make_model(family, vocab_size, **overrides)
            model.to(getattr(torch, dtype)).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real model all-MiniLM-L6-v2; obtained once, like `make model` does."""
    from minibert.cli.fetch import default_models_folder, obtain_model

    return obtain_model(default_models_folder(), lambda line: None)


@pytest.fixture
def ops() -> Iterator[CpuOps]:
    """The kernels of the CPU, on two threads."""
    made = CpuOps(threads=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which an engine can be made, for tests that then ask for what it refuses."""
    return save_good(tmp_path_factory.mktemp("good") / "good")


@pytest.fixture(scope="module")
def engine(good: Path) -> Iterator[Engine]:
    """An engine on `good`."""
    with Engine.from_pretrained(good, local_files_only=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def quick_collection(good: Path) -> Iterator[None]:
    """Leave what the libraries hold out of the collections that the tests ask for."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
