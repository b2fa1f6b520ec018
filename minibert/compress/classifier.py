"""The head of a BertForSequenceClassification, fitted to its teacher's after the encoder was cut.

logits = W tanh(P h + p) + b, with h the last hidden state of the first token. The pooler P is
fitted by least squares to give what the teacher's pooler gives before tanh; then W and b by
Newton's method to the teacher's logits, softened, and to labels where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.compress.run import TextRun
from minibert.errors import InputError
from minibert.loading import LoadedModel
from minibert.pooling import Pooling
from minibert.weights.checkpoint import EncoderWeights, LinearWeights
from minibert.weights.classifier_fit import NO_LABEL, fit_classifier
from minibert.weights.layer_fit import CHECK_EVERY, Block, fit_linear
from minibert.weights.rewrite import Checkpoint

FloatArray = NDArray[Any]
_NAMES = {"pooler": "bert.pooler.dense", "classifier": "classifier"}


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How soft and hard targets are mixed.

    Attributes:
        labels: of the texts given, by number or name; None without.
        temperature: of the soft targets.
        alpha: share of the soft targets where a text has a label.
    """

    labels: Sequence[str] | None = None
    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: naming the option and its rule.
        """
        if not self.temperature > 0.0 or not np.isfinite(self.temperature):
            raise InputError(f"temperature must be above 0 and finite, got {self.temperature}")
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha must be 0 to 1, got {self.alpha}")


@dataclass(frozen=True, slots=True)
class Head:
    """Both layers behind the encoder."""

    pooler: LinearWeights
    classifier: LinearWeights

    def pooled(self, first_tokens: FloatArray) -> FloatArray:
        """(num_texts, hidden_size) from last hidden states of first tokens."""
        out: FloatArray = np.tanh(_apply(self.pooler, first_tokens))
        return out

    def logits(self, first_tokens: FloatArray) -> FloatArray:
        """(num_texts, num_labels)."""
        return _apply(self.classifier, self.pooled(first_tokens))

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Name in the checkpoint -> values."""
        found = {}
        for part, name in _NAMES.items():
            linear: LinearWeights = getattr(self, part)
            assert linear.bias is not None
            found[f"{name}.weight"], found[f"{name}.bias"] = linear.weight, linear.bias
        return found


@dataclass(frozen=True, slots=True)
class HeadReport:
    """On texts that calibrated nothing.

    Attributes:
        agreement: share of texts to which teacher and student give the same label.
        teacher_accuracy: share of the labels given that the teacher finds; None without labels.
        accuracy: likewise, of the student.
    """

    agreement: float
    teacher_accuracy: float | None
    accuracy: float | None


def read_head(loaded: LoadedModel, encoder_folder: Path) -> Head | None:
    """The head of a classifier of several exclusive labels; None for other models."""
    if loaded.config.model_type != "bert":
        return None
    checkpoint = Checkpoint.open(encoder_folder, loaded.config)
    names = [f"{name}.{kind}" for name in _NAMES.values() for kind in ("weight", "bias")]
    if any(name not in checkpoint.tensors for name in names):
        return None
    pooler_weight, pooler_bias, weight, bias = (checkpoint.read(name) for name in names)
    if len(weight) < 2:
        return None
    return Head(LinearWeights(pooler_weight, pooler_bias), LinearWeights(weight, bias))


def label_numbers(
    options: HeadOptions, texts: Sequence[str] | None, loaded: LoadedModel, classes: int
) -> dict[str, int]:
    """Text -> number of its label.

    Args:
        options: has the labels, one for each text.
        texts: as the user gave them.
        loaded: knows the labels' names.
        classes: how many labels there are.

    Raises:
        InputError: labels without texts, of another count, of an unknown name, or one text with
            two labels.
    """
    if options.labels is None:
        return {}
    if texts is None or len(texts) != len(options.labels):
        have = "no texts" if texts is None else f"{len(texts)} texts"
        raise InputError(
            f"labels must be as many as the texts, got {len(options.labels)} labels and {have}"
        )
    names = {name: number for number, name in loaded.config.id2label.items()}
    found: dict[str, int] = {}
    for text, label in zip(texts, options.labels, strict=True):
        name = label.strip()
        number = names.get(name, int(name) if name.isdecimal() else NO_LABEL)
        if not 0 <= number < classes:
            raise InputError(
                f"labels must be 0 to {classes - 1} or one of {', '.join(names)}, got {name!r}"
            )
        if found.setdefault(text.strip(), number) != number:
            raise InputError(f"labels must be the same for the same text, differ for {text!r}")
    return found


def fit_head(
    run: TextRun,
    teacher: EncoderWeights,
    student: EncoderWeights,
    head: Head,
    labels: NDArray[np.int64],
    options: HeadOptions,
) -> Head:
    """Fit both layers of the student's head.

    Args:
        run: calibration texts.
        teacher: the original's encoder, and `head` its head.
        student: the student's encoder.
        head: where both fits start.
        labels: (num_texts,), `NO_LABEL` where unknown.
        options: how the targets are mixed.
    """
    wanted, given = first_tokens(run, teacher), first_tokens(run, student)
    before = _apply(head.pooler, wanted)
    count = min(len(given), 4 * CHECK_EVERY)
    parts = [slice(i, None, count) for i in range(count)]
    blocks = [
        Block(given[part], before[part], np.arange(len(given[part]) + 1, dtype=np.int32))
        for part in parts
    ]
    moved = Head(fit_linear(blocks, head.pooler), head.classifier)
    classifier = fit_classifier(
        moved.pooled(given),
        head.logits(wanted),
        labels,
        head.classifier,
        temperature=options.temperature,
        alpha=options.alpha,
    )
    return Head(moved.pooler, classifier)


def report_head(expected: FloatArray, found: FloatArray, labels: NDArray[np.int64]) -> HeadReport:
    """Compare the logits of teacher and student, (num_texts, num_labels) each."""
    first, second = expected.argmax(axis=1), found.argmax(axis=1)
    known = labels != NO_LABEL
    accuracies = [
        float((choice[known] == labels[known]).mean()) if known.any() else None
        for choice in (first, second)
    ]
    return HeadReport(float((first == second).mean()), *accuracies)


def first_tokens(run: TextRun, weights: EncoderWeights) -> FloatArray:
    """(num_texts, hidden_size): the last hidden state of each text's first token."""
    return run.embeddings(weights, steps=(Pooling(("cls",)),))


def _apply(linear: LinearWeights, rows: FloatArray) -> FloatArray:
    out: FloatArray = rows @ linear.weight.T
    if linear.bias is not None:
        out = out + linear.bias
    return out
