"""A tiny BERT, saved by transformers itself, and ways to run the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minibert.cli import app

CHECKOUT = Path(__file__).resolve().parents[2]
WORDS = "the a cat dog sat on mat and bread stays soft in paper bag ice lake walk safe sun moon"
HIDDEN_SIZE = 32


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = [prefix + chr(code) for code in range(97, 123) for prefix in ("", "##")]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*specials, *dict.fromkeys(WORDS.split()), *letters]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BertModel(config).save_pretrained(folder)
        BertTokenizerFast(
            vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=64
        ).save_pretrained(folder)
    return folder


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run the command line in this process: `run("encode", folder, "--text", "a cat")`."""

    def invoke(*arguments: object, **keywords: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], **keywords)

    return invoke


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command line in a process of its own."""

    def popen(*arguments: object, **keywords: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "minibert", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            **keywords,
        )

    return popen
