"""`minibert quantize`, `prune`, `sparsify` and `distil` as a person runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minibert import Engine
from minibert.cli.app import app
from tests.texts import texts


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts()) + "\n")
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


@pytest.mark.parametrize("command", ["prune --flops 0.9", "sparsify --pattern 2:4"])
@pytest.mark.parametrize("bar", [(), ("--progress",)], ids=str)
def test_a_closed_standard_error_is_no_place_for_a_bar(
    tiny: Any, tmp_path: Path, texts_file: Path, command: str, bar: tuple[str, ...]
) -> None:
    name, *options = command.split()
    arguments = (name, tiny("bert"), tmp_path / "out", "--texts", texts_file, *options, *bar)
    shell = ["sh", "-c", '"$0" -m minibert "$@" 2>&-', sys.executable, *map(str, arguments)]
    done = subprocess.run(shell, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith(f"written to {tmp_path / 'out'}\n".encode())


@pytest.mark.parametrize(
    "command", [("prune", "--speedup", "1"), ("distil", "--layers", "3", "--heads", "4")], ids=str
)
def test_changing_nothing_is_said(
    tiny: Any, tmp_path: Path, texts_file: Path, command: tuple[str, ...]
) -> None:
    name, *options = command
    done = minibert(name, tiny("bert"), tmp_path / "out", "--texts", texts_file, *options)
    assert done.exit_code == 0
    assert "nothing is changed" in done.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("quantize", "--max-texts", "10"), "--texts"),
        (("quantize", "--no-gate", "--min-cosine", "0.9"), "--no-gate"),
        (("quantize", "--texts", "none.txt"), "--texts must be a readable file, got 'none.txt'"),
        (("distil", "--layers", "2", "--labels", "none.txt"), "--labels must be a readable file"),
        (("distil", "--layers", "2", "--texts", "-", "--labels", "-"), "must be named once, got 2"),
        (("prune",), "--speedup, --flops, --latency-ms or --drop-layers, got none"),
        (("prune", "--drop-layers", "0"), "got none"),
        (("prune", "--flops", "0.0001"), "flops must be at least 0."),
        (("prune", "--latency-ms", "1e-9"), "latency_ms must be at least 0."),
        (("prune", "--speedup", "1e9"), "speedup must be at most"),
        (("distil", "--layers", "2", "--flops", "1e-9"), "flops must be at least 0."),
        (("prune", "--flops", "0.5", "--speedup", "2"), "one of"),
        (("distil", "--layers", "7"), "layers must be"),
        (("sparsify", "--pattern", "2:4", "--sparsity", "0.6"), "0.5 for pattern 2:4"),
        (("sparsify", "--pattern", "block", "--reconstruct", "none", "--regrow", "2"), "regrow"),
        (("sparsify", "--pattern", "block", "--sparsity", "1"), "--sparsity"),
        (("sparsify", "--pattern", "block", "--sparsity", "0.001"), "0.0209 is one"),
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


def test_the_ending_of_a_texts_file_is_refused_without_options_of_encode(
    tiny: Any, tmp_path: Path
) -> None:
    source = tmp_path / "texts.bin"
    source.write_bytes(b"a cat")
    done = minibert("quantize", tiny("bert"), tmp_path / "out", "--texts", source)
    assert done.exit_code == 2
    assert "--texts must end in one of .txt" in done.output
    assert "--input-format" not in done.output


@pytest.mark.parametrize("kind", ["empty folder", "other folder", "file"])
def test_what_is_no_model_is_never_replaced(tiny: Any, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("x")
    else:
        target.mkdir()
    if kind == "other folder":
        (target / "notes.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for more in ((), ("--overwrite",)):
        done = minibert("quantize", tiny("bert"), target, *more)
        assert done.exit_code == 2
        assert "no model folder to be replaced" in done.output
        assert "--overwrite" not in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refused_target_keeps_the_measurements_of_an_earlier_run(
    tiny: Any, tmp_path: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    command = ("prune", tiny("bert"), tmp_path / "out", "--texts", texts_file, "--drop-layers", "1")
    with monkeypatch.context() as patch:
        patch.setattr("minibert.compress.cutting.refit", stop)
        stopped = minibert(*command)
    assert stopped.exit_code == 130
    left = [".out.progress.json", "texts.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    refused = minibert(*command, "--flops", "0.0001")
    assert refused.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    done = minibert(*command)
    assert done.exit_code == 0, done.output
    assert "Going on from 3 measurements" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.txt"]


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
