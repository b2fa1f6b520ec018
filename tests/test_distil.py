from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import Engine
from minibert.compress.align import fit_alignment, with_alignment
from minibert.compress.classifier import HeadOptions
from minibert.compress.distil import distil_model
from minibert.compress.refit import counterparts
from minibert.compress.run import TextRun
from minibert.errors import InputError
from minibert.fidelity import compare
from minibert.loading import load_model
from tests.texts import texts


def test_a_kept_layer_answers_for_those_dropped_behind_it() -> None:
    assert counterparts((0, 2, 4), 6) == (1, 3, 5)
    assert counterparts((1, 5), 6) == (4, 5)
    assert counterparts((0, 1, 2), 3) == (0, 1, 2)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_student_has_fewer_layers_and_loads(tiny: Any, tmp_path: Path, family: str) -> None:
    folder = tiny(family)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = distil_model(folder, tmp_path / "s", 2, texts=texts(80))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert result.report is not None
    assert len(result.kept_layers) == 2
    with Engine.from_pretrained(tmp_path / "s") as student:
        rows = student.encode(texts(7))
        assert rows.shape == (7, 48)
        assert "dense 48 -> 48" in student.explain()
        assert rows.tobytes() == np.stack([student.encode(t) for t in texts(7)]).tobytes()


def test_a_narrower_student_has_the_operations_asked_for(tiny: Any, tmp_path: Path) -> None:
    result = distil_model(tiny("bert"), tmp_path / "s", 2, flops=0.5, texts=texts(80), align=False)
    assert result.report is not None
    assert result.report.flop_ratio >= 2.0
    assert not list((tmp_path / "s").glob("*_Dense"))


def test_a_student_has_the_heads_and_neurons_asked_for(tiny: Any, tmp_path: Path) -> None:
    result = distil_model(
        tiny("bert"), tmp_path / "s", 2, heads=3, intermediate=64, texts=texts(80), align=False
    )
    assert result.shapes == ((3, 64), (3, 64))
    config = load_model(tmp_path / "s").config
    assert (config.num_hidden_layers, config.layer_shapes) == (2, ((3, 64), (3, 64)))
    # As many layers as the teacher's are enough where they are narrower.
    whole = distil_model(tiny("bert"), tmp_path / "w", 3, intermediate=50, texts=texts(80))
    assert whole.shapes == ((4, 50),) * 3
    for keywords, word in (
        ({"heads": 5}, "heads must be at most 4"),
        ({"intermediate": 101}, "intermediate must be at most 100"),
        ({"heads": 3, "flops": 0.5}, "must not come with"),
    ):
        with pytest.raises(InputError, match=word):
            distil_model(tiny("bert"), tmp_path / "x", 2, texts=texts(80), **keywords)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


# ---- classifiers -------------------------------------------------------------------------------
def classifier_folder(tmp_path: Path) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from tests.conftest import make_tokenizer

    folder = tmp_path / "teacher"
    folder.mkdir()
    vocab_size = make_tokenizer(folder, roberta=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=100,
        max_position_embeddings=70,
        initializer_range=0.2,
        id2label={0: "no", 1: "maybe", 2: "yes"},
        label2id={"no": 0, "maybe": 1, "yes": 2},
    )
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def logits_by_transformers(folder: Path, given: list[str]) -> Any:
    """A student is read by transformers: it must have the usual shape."""
    import torch
    from transformers import BertForSequenceClassification

    from minibert.tokenizer import Tokenizer

    model = BertForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for ids in Tokenizer.from_folder(folder).encode(given, max_length=60).input_ids:
        with torch.no_grad():
            rows.append(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy())
    return np.stack(rows)


def test_a_classifier_is_fitted_to_its_teacher(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path)
    given, held = texts(400)[::2], texts(400)[1::2]
    result = distil_model(folder, tmp_path / "s", 2, texts=given)
    assert result.head is not None and result.head.accuracy is None
    assert not list((tmp_path / "s").glob("*_Dense"))
    expected = logits_by_transformers(folder, held)
    found = logits_by_transformers(tmp_path / "s", held)
    # The same encoder under the teacher's own head, unfitted.
    unfitted = load_file(tmp_path / "s" / "model.safetensors")
    original = load_file(folder / "model.safetensors")
    for name in ("bert.pooler.dense", "classifier"):
        for kind in ("weight", "bias"):
            unfitted[f"{name}.{kind}"] = original[f"{name}.{kind}"]
    save_file(unfitted, tmp_path / "s" / "model.safetensors", metadata={"format": "pt"})
    before = logits_by_transformers(tmp_path / "s", held)
    assert np.square(found - expected).sum() < np.square(before - expected).sum()
    agreement = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    assert agreement >= (before.argmax(axis=1) == expected.argmax(axis=1)).mean()


def test_labels_decide_where_they_are_trusted(tmp_path: Path) -> None:
    folder = classifier_folder(tmp_path)
    given = texts(400)
    names = ["yes" if "cat" in text.split() else "no" for text in given]
    accuracies = []
    for number, alpha in enumerate((1.0, 0.0)):
        options = HeadOptions(names, alpha=alpha)
        target = tmp_path / str(number)
        result = distil_model(folder, target, 3, intermediate=90, classify=options, texts=given)
        assert result.head is not None and result.head.accuracy is not None
        accuracies.append(result.head.accuracy)
    assert accuracies[1] > accuracies[0]


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (["no"], "as many as the texts"),
        (["no"] * 79 + ["perhaps"], "perhaps"),
        (["0"] * 79 + ["3"], "0 to 2"),
    ],
    ids=str,
)
def test_labels_are_checked(tmp_path: Path, labels: list[str], word: str) -> None:
    folder = classifier_folder(tmp_path)
    with pytest.raises(InputError, match=word):
        distil_model(folder, tmp_path / "s", 2, classify=HeadOptions(labels), texts=texts(80))
    assert not (tmp_path / "s").exists()


def test_labels_for_a_model_without_a_classifier_are_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bert classifier"):
        distil_model(
            tiny("bert"), tmp_path / "s", 2, classify=HeadOptions(["a"] * 80), texts=texts(80)
        )


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
        distil_model(tiny("bert"), tmp_path / "s", layers, texts=texts(80))
    assert not list(tmp_path.iterdir())
