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


def test_a_missing_folder_is_a_line(run: Run, tmp_path: Path) -> None:
    result = run("explain", tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
