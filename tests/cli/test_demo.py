from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from minibert.cli import app
from minibert.cli.demo import _bar
from minibert.data import demo_questions, demo_texts, demo_vectors

Run = Callable[..., Result]


def test_the_text_set_is_varied_and_clean() -> None:
    texts, questions = demo_texts(), demo_questions()
    assert 60 <= len(texts) <= 120
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and text for text in texts + questions)
    assert demo_vectors().shape == (len(questions), 384)


@pytest.mark.parametrize(
    ("score", "bar"),
    [(-0.2, " " * 12), (0.0, " " * 12), (0.5, "█" * 6 + " " * 6), (1.0, "█" * 12), (7, "█" * 12)],
)
def test_a_bar_is_as_long_as_the_score(score: float, bar: str) -> None:
    assert _bar(score) == bar


def test_the_demo_answers_in_80_columns(run: Run, minilm: Path) -> None:
    result = run("demo", "--models-folder", minilm.parent)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "\x1b" not in result.output
    answers = result.output.split(demo_questions()[0])[1]
    assert "hold the power" in answers.splitlines()[1]
    difference = result.output.split("sentence-transformers' own vectors: ")[1].split()[0]
    assert float(difference) <= 2e-6  # what the project promises for unit vectors


def test_a_question_of_one_s_own_is_asked_instead(run: Run, tiny_model: Path) -> None:
    options = ["--model", tiny_model, "--query", "an animal with several hearts", "--top", 1]
    result = run("demo", *options)
    assert result.exit_code == 0, result.output
    assert "\nan animal with several hearts\n" in result.output
    assert demo_questions()[0] not in result.output
    assert "sentence-transformers" not in result.output


def test_a_terminal_without_unicode_gets_a_bar_of_hashes(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--query", "a cat"]
    output = CliRunner(charset="ascii").invoke(app, ["demo", *options]).output
    assert "###" in output
    assert "█" not in output


def test_the_vectors_are_those_of_sentence_transformers(minilm: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(minilm), device="cpu").encode(demo_questions())
    np.testing.assert_allclose(demo_vectors(), theirs, rtol=0, atol=1e-6)


def test_a_missing_model_is_a_line(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--model", tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
