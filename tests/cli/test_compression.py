"""`minibert quantize`, `prune`, `sparsify` and `distil` as a person runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from minibert import Engine
from minibert.cli.app import app

WORDS = "the a cat dog sat on mat and bread stays soft in paper bag ice lake walk safe sun moon"


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    words = WORDS.split()
    lines = [" ".join(rng.choice(words, 3 + i % 9)) + f" {chr(97 + i % 26)}" for i in range(60)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def minibert(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "--no-gate"),
        ("quantize", "--bits", "4", "--embedding-bits", "32", "--no-gate", "--migrate"),
        ("prune", "--flops", "0.7"),
        ("prune", "--drop-layers", "1", "--align"),
        ("prune", "--flops", "0.7", "--device", "numpy"),
        ("distil", "--layers", "2"),
        ("sparsify", "--pattern", "2:4", "--method", "magnitude", "--reconstruct", "columns"),
        ("sparsify", "--pattern", "block", "--sparsity", "0.25", "--regrow", "1"),
        ("distil", "--layers", "2", "--heads", "3", "--intermediate", "64"),
    ],
    ids=" ".join,
)
def test_a_command_writes_a_model_and_a_table(
    tiny: Any, tmp_path: Path, texts_file: Path, command: tuple[str, ...]
) -> None:
    name, *options = command
    target = tmp_path / "out"
    done = minibert(name, tiny("bert"), target, "--texts", texts_file, *options)
    assert done.exit_code == 0, done.output
    for row in ("weight files, MB", "tokens/s, here", "Spearman of pairs", "15 texts"):
        assert row in done.output
    with Engine.from_pretrained(target) as engine:
        assert engine.encode("the cat sat").shape == (48,)


def test_pruning_nothing_says_so(tiny: Any, tmp_path: Path, texts_file: Path) -> None:
    done = minibert("prune", tiny("bert"), tmp_path / "out", "--texts", texts_file)
    assert done.exit_code == 0
    assert "nothing is changed" in done.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("quantize", "--max-texts", "10"), "--texts"),
        (("prune", "--flops", "0.5", "--speedup", "2"), "one of"),
        (("distil", "--layers", "7"), "layers must be"),
        (("sparsify", "--pattern", "2:4", "--sparsity", "0.6"), "0.5 for pattern 2:4"),
        (("sparsify", "--pattern", "block", "--reconstruct", "none", "--regrow", "2"), "regrow"),
        (("sparsify", "--pattern", "block", "--sparsity", "1"), "--sparsity"),
        (("sparsify",), "--pattern"),
        (("distil", "--layers", "2", "--heads", "9"), "heads must be at most 4"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_leave_nothing(
    tiny: Any, tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    name, *options = arguments
    done = minibert(name, tiny("bert"), tmp_path / "out", *options)
    assert done.exit_code == 2
    assert word in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["quantize", "prune", "distil"])
def test_an_unknown_device_is_named_and_leaves_nothing(
    tiny: Any, tmp_path: Path, texts_file: Path, name: str
) -> None:
    options = {"quantize": (), "prune": ("--flops", "0.7"), "distil": ("--layers", "2")}[name]
    done = minibert(
        name, tiny("bert"), tmp_path / "out", "--texts", texts_file, "--device", "abacus", *options
    )
    assert done.exit_code == 2
    assert "device must be one of" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_an_existing_folder_is_replaced_only_when_asked(
    tiny: Any, tmp_path: Path, texts_file: Path
) -> None:
    target = tmp_path / "out"
    options = ("--texts", texts_file, "--no-gate")
    assert minibert("quantize", tiny("bert"), target, *options).exit_code == 0
    again = minibert("quantize", tiny("bert"), target, *options)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert minibert("quantize", tiny("bert"), target, *options, "--overwrite").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.txt"]
