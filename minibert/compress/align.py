"""A last linear map from a student's pooled vectors to its teacher's, in closed form.

It costs one small product per text, nothing per token. It is a Dense module of
sentence-transformers, put right behind the pooling, so that other programs read it, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minibert.compress.run import TextRun
from minibert.loading import LoadedModel
from minibert.pooling import Dense, Pooling, Step
from minibert.weights.checkpoint import EncoderWeights, LinearWeights
from minibert.weights.prune import Moments, refit_to_target
from minibert.weights.rewrite import write_safetensors
from minibert.weights.tensors import SINGLE_FILE, TensorEntry

_CHECK_EVERY = 5  # every fifth text checks instead of training


def fit_alignment(run: TextRun, teacher: EncoderWeights, student: EncoderWeights) -> Dense:
    """Fit weight and bias so that the student's pooled vectors come near the teacher's.

    Starts from the identity and goes no further from it than pays on texts held out.
    """
    pooling = run.loaded.steps[:1]
    wanted = run.embeddings(teacher, steps=pooling)
    given = run.embeddings(student, steps=pooling)
    width = given.shape[1]
    check = np.arange(len(given)) % _CHECK_EVERY == _CHECK_EVERY - 1
    empty = Moments.empty(width, width)
    fitted = refit_to_target(
        empty.plus(given[~check], wanted[~check]),
        empty.plus(given[check], wanted[check]),
        np.eye(width, dtype=np.float32),
        np.zeros(width, np.float32),
    )
    return Dense(fitted, None)


def with_alignment(steps: tuple[Step, ...], dense: Dense) -> tuple[Step, ...]:
    """The steps with the map right behind the pooling."""
    assert isinstance(steps[0], Pooling)
    return (steps[0], dense, *steps[1:])


def write_alignment(loaded: LoadedModel, dense: Dense, folder: Path) -> None:
    """Add the module to a model folder that was copied from the original's.

    Args:
        loaded: the original.
        dense: from `fit_alignment`.
        folder: holds the copied files; gets another folder and a new modules.json.
    """
    modules: list[dict[str, Any]]
    settings: dict[str, Any]
    path = folder / "modules.json"
    if path.exists():
        modules = json.loads(path.read_text(encoding="utf-8-sig"))
    else:
        pooling = folder / "1_Pooling"
        pooling.mkdir()
        settings = {
            "word_embedding_dimension": loaded.config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        }
        (pooling / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        modules = [_module("", "Transformer"), _module("1_Pooling", "Pooling")]
    name = "aligned_Dense"
    modules.insert(2, _module(name, "Dense"))
    for number, module in enumerate(modules):
        module.update(idx=number, name=str(number))
    path.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    where = folder / name
    where.mkdir()
    out_features, in_features = dense.weights.weight.shape
    settings = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (where / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    linear: LinearWeights = dense.weights
    assert linear.bias is not None
    write_safetensors(
        where / SINGLE_FILE,
        {
            "linear.weight": TensorEntry("F32", linear.weight, where),
            "linear.bias": TensorEntry("F32", linear.bias, where),
        },
    )


def _module(path: str, kind: str) -> dict[str, Any]:
    return {"path": path, "type": f"sentence_transformers.models.{kind}"}
