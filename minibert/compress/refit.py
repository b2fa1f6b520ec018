"""Fits a smaller model to its teacher, layer by layer, from what both compute on the same tokens.

A layer's matrices are fitted to give the teacher's sums before layer_norm, from the inputs that the
smaller model really has: what earlier layers lost is made up where it can be. Targets include the
difference of the residuals. Features count as much as the layer_norm behind them lets through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from minibert.compress.layerwise import FloatArray, LayerWalk, States, sums_before_norms
from minibert.compress.progress import LayerStore
from minibert.compress.run import TextRun
from minibert.ops.activations import activate
from minibert.weights.checkpoint import (
    EncoderWeights,
    LayerWeights,
    LinearWeights,
    NormWeights,
)
from minibert.weights.layer_fit import fit_feed_forward, fit_linear

Step = Callable[[], None]
NEWTON_STEPS = 3
"""Gauss-Newton steps of the first feed-forward matrix, at most."""


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
    newton_steps: int = NEWTON_STEPS,
    store: LayerStore | None = None,
    step: Step = lambda: None,
) -> EncoderWeights:
    """Fit a student's attention output and feed-forward matrices to its teacher.

    Args:
        run: calibration texts.
        teacher: the original.
        student: as many layers or fewer, each narrower or not.
        matching: the teacher's layer that each of the student's stands for; the same when None.
        newton_steps: see `fit_feed_forward`.
        store: keeps fitted layers; those that it has are taken as they are.
        step: called after each layer.

    Returns:
        The fitted student. Shapes are the student's.
    """
    matching = range(len(student.layers)) if matching is None else matching
    layers = list(student.layers)
    walk = LayerWalk(run)
    try:
        expected, states, done = walk.start(teacher), walk.start(student), 0
        for i, counterpart in enumerate(matching):
            between = teacher.layers[done : counterpart + 1]
            expected, after_attention, after = sums_before_norms(walk, expected, between)
            done = counterpart + 1
            known = None if store is None else store.get(i, layers[i])
            if known is None:
                known = _refit_layer(walk, states, layers[i], after_attention, after, newton_steps)
                if store is not None:
                    store.put(i, known)
            layers[i] = known
            states = walk.through(states, known)
            step()
    finally:
        walk.close()
    return replace(student, layers=tuple(layers))


def _refit_layer(
    walk: LayerWalk,
    states: States,
    layer: LayerWeights,
    after_attention: States,
    after: States,
    newton_steps: int,
) -> LayerWeights:
    """The fitted layer."""
    config = walk.config
    contexts = walk.contexts(states, layer)
    blocks = walk.blocks(contexts, [s - x for s, x in zip(after_attention, states, strict=True)])
    fitted = fit_linear(blocks, layer.attention_output, layer.attention_norm.weight)
    layer = replace(layer, attention_output=fitted)
    middle = [
        _normalized(_linear(context, fitted) + hidden, layer.attention_norm, config.layer_norm_eps)
        for context, hidden in zip(contexts, states, strict=True)
    ]
    del contexts
    blocks = walk.blocks(middle, [s - x for s, x in zip(after, middle, strict=True)])
    intermediate, output = fit_feed_forward(
        blocks,
        layer.intermediate,
        layer.output,
        lambda values: activate(values, config.hidden_act),
        steps=newton_steps,
        metric=layer.output_norm.weight,
    )
    return replace(layer, intermediate=intermediate, output=output)


def _linear(hidden: FloatArray, weights: LinearWeights) -> FloatArray:
    out: FloatArray = hidden @ weights.weight.T
    if weights.bias is not None:
        out += weights.bias
    return out


def _normalized(rows: FloatArray, norm: NormWeights, eps: float) -> FloatArray:
    """layer_norm of each row."""
    out: FloatArray = rows - rows.mean(axis=1, keepdims=True)
    out /= np.sqrt(np.square(out).mean(axis=1, keepdims=True) + np.float32(eps))
    out *= norm.weight
    if norm.bias is not None:
        out += norm.bias
    return out
