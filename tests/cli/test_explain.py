from __future__ import annotations

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
