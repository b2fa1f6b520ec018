from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert import Engine
from minibert.compress.align import fit_alignment, with_alignment
from minibert.compress.distil import distil_model
from minibert.compress.refit import counterparts
from minibert.compress.run import TextRun
from minibert.errors import InputError
from minibert.fidelity import compare
from minibert.loading import load_model

WORDS = "the a cat dog sat on mat and bread stays soft in paper bag ice lake walk safe sun moon"


def texts(count: int = 80) -> list[str]:
    rng = np.random.default_rng(5)
    words = WORDS.split()
    return [" ".join(rng.choice(words, 3 + i % 9)) + f" {chr(97 + i % 26)}" for i in range(count)]


def test_a_kept_layer_answers_for_those_dropped_behind_it() -> None:
    assert counterparts((0, 2, 4), 6) == (1, 3, 5)
    assert counterparts((1, 5), 6) == (4, 5)
    assert counterparts((0, 1, 2), 3) == (0, 1, 2)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_student_has_fewer_layers_and_loads(tiny: Any, tmp_path: Path, family: str) -> None:
    folder = tiny(family)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = distil_model(folder, tmp_path / "s", 2, texts=texts())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert result.report is not None
    assert len(result.kept_layers) == 2
    with Engine.from_pretrained(tmp_path / "s") as student:
        rows = student.encode(texts(7))
        assert rows.shape == (7, 48)
        assert "dense 48 -> 48" in student.explain()
        assert rows.tobytes() == np.stack([student.encode(t) for t in texts(7)]).tobytes()


def test_a_narrower_student_has_the_operations_asked_for(tiny: Any, tmp_path: Path) -> None:
    result = distil_model(tiny("bert"), tmp_path / "s", 2, flops=0.5, texts=texts(), align=False)
    assert result.report is not None
    assert result.report.flop_ratio >= 2.0
    assert not list((tmp_path / "s").glob("*_Dense"))


def test_alignment_undoes_a_rotation(tiny: Any) -> None:
    """A student whose vectors are the teacher's, mirrored, is mapped back."""
    from dataclasses import replace

    loaded = load_model(tiny("bert"))
    run = TextRun(loaded, texts(400))
    last = loaded.weights.layers[-1]
    assert last.output_norm.bias is not None
    norm = replace(last.output_norm, weight=-last.output_norm.weight, bias=-last.output_norm.bias)
    layers = (*loaded.weights.layers[:-1], replace(last, output_norm=norm))
    mirrored = replace(loaded.weights, layers=layers)
    expected = run.embeddings()
    assert compare(expected, run.embeddings(mirrored)).mean_cosine == pytest.approx(-1.0)
    dense = fit_alignment(run, loaded.weights, mirrored)
    aligned = run.embeddings(mirrored, steps=with_alignment(loaded.steps, dense))
    assert compare(expected, aligned).mean_cosine > 0.99


@pytest.mark.parametrize("layers", [0, 3, 9])
def test_as_many_layers_as_the_teacher_has_are_refused(
    tiny: Any, tmp_path: Path, layers: int
) -> None:
    with pytest.raises(InputError, match="layers must be 1 to 2"):
        distil_model(tiny("bert"), tmp_path / "s", layers, texts=texts())
    assert not list(tmp_path.iterdir())
