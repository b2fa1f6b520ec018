"""Fits a smaller model to its teacher, layer by layer, from what both compute on the same tokens.

A layer's two output matrices (attention and feed-forward) are fitted to give the teacher's sums
before layer_norm, from the inputs that the smaller model really has: what earlier layers lost is
made up where it can be. Targets include the difference of the residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from minibert.compress.run import TextRun
from minibert.ops.recording import LinearEvent
from minibert.weights.checkpoint import EncoderWeights, LinearWeights
from minibert.weights.prune import Moments, refit_to_target

Step = Callable[[], None]
MEAN_WEIGHT = 4.0
"""How much more the error of a text's mean counts than that of a token."""
_CHECK_EVERY = 5  # every fifth batch checks instead of training


class _Collector:
    """Keeps the sums before layer_norm of one layer's two output matrices."""

    def __init__(self) -> None:
        self.rows: dict[str, list[NDArray[np.float32]]] = {}

    def __call__(self, event: LinearEvent) -> None:
        self.rows.setdefault(event.name, []).append(event.out)


class _Fitter:
    """Sums up moments of one linear layer against the teacher's rows."""

    def __init__(self, targets: list[NDArray[np.float32]]) -> None:
        self.targets = targets
        self.batch = 0
        self.train: Moments | None = None
        self.check: Moments | None = None

    def __call__(self, event: LinearEvent) -> None:
        target = self.targets[self.batch]
        assert target.shape == event.out.shape
        assert event.residual is not None
        wanted = target - event.residual
        if self.train is None or self.check is None:
            empty = Moments.empty(event.hidden.shape[1], wanted.shape[1])
            self.train = self.check = empty
        # Whole batches, so whole texts: tokens of one text resemble one another.
        if self.batch % _CHECK_EVERY == _CHECK_EVERY - 1:
            self.check = self.check.plus(
                event.hidden, wanted, event.cu_seqlens, mean_weight=MEAN_WEIGHT
            )
        else:
            self.train = self.train.plus(
                event.hidden, wanted, event.cu_seqlens, mean_weight=MEAN_WEIGHT
            )
        self.batch += 1


def counterparts(kept: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The teacher's layer whose output each kept layer has to give: the last before the next one.

    Args:
        kept: the teacher's layers that the student consists of, ascending.
        num_layers: of the teacher.
    """
    return (*(following - 1 for following in kept[1:]), num_layers - 1)


def take_norms(
    student: EncoderWeights, teacher: EncoderWeights, matching: Sequence[int]
) -> EncoderWeights:
    """The student with the layer_norms of the layers whose outputs it has to give."""
    layers = tuple(
        replace(
            layer,
            attention_norm=teacher.layers[i].attention_norm,
            output_norm=teacher.layers[i].output_norm,
        )
        for layer, i in zip(student.layers, matching, strict=True)
    )
    return replace(student, layers=layers)


def refit(
    run: TextRun,
    teacher: EncoderWeights,
    student: EncoderWeights,
    *,
    matching: Sequence[int] | None = None,
    step: Step = lambda: None,
) -> EncoderWeights:
    """Fit a student's output matrices to its teacher.

    Args:
        run: calibration texts.
        teacher: the original.
        student: as many layers or fewer, each narrower or not.
        matching: the teacher's layer that each of the student's stands for; the same when None.
        step: called after each layer.

    Returns:
        The fitted student. Shapes are the student's.
    """
    matching = range(len(student.layers)) if matching is None else matching
    layers = list(student.layers)
    for i, counterpart in enumerate(matching):
        seen = _Collector()
        names = {f"layer.{counterpart}.{part}" for part in ("attention_output", "output")}
        cut = replace(teacher, layers=teacher.layers[: counterpart + 1])
        run.embeddings(cut, observer=seen, names=names.__contains__)
        for part in ("attention_output", "output"):
            fitter = _Fitter(seen.rows[f"layer.{counterpart}.{part}"])
            cut = replace(student, layers=tuple(layers[: i + 1]))
            run.embeddings(cut, observer=fitter, names=f"layer.{i}.{part}".__eq__)
            assert fitter.train is not None and fitter.check is not None
            old: LinearWeights = getattr(layers[i], part)
            bias = np.zeros(old.weight.shape[0], np.float32) if old.bias is None else old.bias
            fitted = refit_to_target(fitter.train, fitter.check, old.weight, bias)
            if part == "output":
                layers[i] = replace(layers[i], output=fitted)
            else:
                layers[i] = replace(layers[i], attention_output=fitted)
        step()
    return replace(student, layers=tuple(layers))
