from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from minibert.engine import Engine

Run = Callable[..., Result]


def test_explain_prints_the_engine_s_report(run: Run, tiny_model: Path) -> None:
    result = run("explain", tiny_model, "--max-length", 16)
    assert result.exit_code == 0
    with Engine.from_pretrained(tiny_model, max_length=16) as engine:
        assert result.stdout.rstrip() == engine.explain().rstrip()


def test_the_side_is_the_models_unless_it_is_named(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    assert "cut on the left (truncation_side of tok" in run("explain", folder).stdout
    named = run("explain", folder, "--truncation-side", "right")
    assert "cut on the right (asked for)" in named.stdout


def test_devices_are_named_in_the_report(run: Run, tiny_model: Path) -> None:
    result = run("explain", tiny_model, "--devices", "emulator, emulator", "--dtype", "float16")
    assert result.exit_code == 0
    assert "2 x emulator (asked for: emulator, emulator), float16; 0 + 0 batches" in result.stdout
    refused = run("explain", tiny_model, "--devices", "emulator,cpu")
    assert refused.exit_code == 2
    assert "must all be cuda or emulator devices" in refused.stderr


def test_a_missing_folder_is_a_line(run: Run, tmp_path: Path) -> None:
    result = run("explain", tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
