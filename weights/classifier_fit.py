"""Fits the last linear layer of a classifier to soft and hard targets: convex, by Newton's method.

With z = W x + b, a teacher's logits t, a temperature T and, where they are known, labels y, the
loss of one text is (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531)

    alpha T^2 CE(softmax(t / T), softmax(z / T)) + (1 - alpha) CE(y, softmax(z)),

and without a label the first term alone, alpha = 1. It is convex in (W, b); a ridge towards the
given layer makes it strictly so. Each Newton step solves the Hessian's equations by conjugate
gradients, to which the Hessian is only ever multiplied, and is halved until the loss falls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError
from minibert.weights.checkpoint import LinearWeights

FloatArray = NDArray[Any]
NO_LABEL = -1
"""Stands for a label that is not known."""

_STEPS = 50
_CG_STEPS = 400
_TOLERANCE = 1e-9  # of the gradient, relative to the first one


def fit_classifier(
    features: FloatArray,
    teacher_logits: FloatArray,
    labels: NDArray[np.int64],
    start: LinearWeights,
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    ridge: float = 1e-3,
) -> LinearWeights:
    """Fit weight and bias.

    Args:
        features: (num_texts, in_features), what the layer gets.
        teacher_logits: (num_texts, num_labels).
        labels: (num_texts,), `NO_LABEL` where unknown.
        start: (num_labels, in_features); the ridge pulls there.
        temperature: T, above 0.
        alpha: share of the soft targets where a label is known, 0 to 1.
        ridge: as a share of the mean squared feature.

    Raises:
        InputError: a temperature, share or label out of range.
    """
    classes = teacher_logits.shape[1]
    if not temperature > 0.0 or not np.isfinite(temperature):
        raise InputError(f"temperature must be above 0 and finite, got {temperature}")
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be 0 to 1, got {alpha}")
    if labels.size and (labels.min() < NO_LABEL or labels.max() >= classes):
        raise InputError(
            f"labels must be 0 to {classes - 1}, the classifier's, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    x = np.concatenate((features, np.ones((len(features), 1))), axis=1).astype(np.float64)
    problem = _Problem(x, teacher_logits, labels, temperature, alpha)
    bias = np.zeros(classes) if start.bias is None else start.bias
    prior = np.concatenate((start.weight, bias[:, None]), axis=1).astype(np.float64)
    problem.prior = prior
    problem.ridge = ridge * float(np.square(x).mean())
    found = _newton(problem, prior)
    return LinearWeights(
        np.ascontiguousarray(found[:, :-1], np.float32), found[:, -1].astype(np.float32)
    )


class _Problem:
    """The mean loss of all texts, plus the ridge; its gradient, and its Hessian times a matrix."""

    def __init__(
        self,
        x: FloatArray,
        teacher_logits: FloatArray,
        labels: NDArray[np.int64],
        temperature: float,
        alpha: float,
    ) -> None:
        known = labels != NO_LABEL
        self.x = x
        self.temperature = temperature
        self.soft = np.where(known, alpha, 1.0)[:, None]
        self.hard = 1.0 - self.soft
        self.wanted = softmax(np.asarray(teacher_logits, np.float64) / temperature)
        self.one_hot = np.eye(teacher_logits.shape[1])[np.where(known, labels, 0)]
        self.prior: FloatArray = np.zeros(0)
        self.ridge = 0.0

    def loss(self, w: FloatArray) -> float:
        z, t = self.x @ w.T, self.temperature
        soft = -(self.wanted * _log_softmax(z / t)).sum(axis=1) * t * t
        hard = -(self.one_hot * _log_softmax(z)).sum(axis=1)
        data = (self.soft[:, 0] * soft + self.hard[:, 0] * hard).mean()
        return float(data + 0.5 * self.ridge * np.square(w - self.prior).sum())

    def at(self, w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The gradient, and both softmaxes that the Hessian is made of."""
        z, t = self.x @ w.T, self.temperature
        q, s = softmax(z / t), softmax(z)
        pull = self.soft * t * (q - self.wanted) + self.hard * (s - self.one_hot)
        return pull.T @ self.x / len(self.x) + self.ridge * (w - self.prior), q, s

    def curvature(self, v: FloatArray, q: FloatArray, s: FloatArray) -> FloatArray:
        """The Hessian times v; T^2 of the loss and 1 / T^2 of its argument cancel."""
        moved = self.x @ v.T
        soft = q * (moved - (q * moved).sum(axis=1, keepdims=True))
        hard = s * (moved - (s * moved).sum(axis=1, keepdims=True))
        out: FloatArray = (self.soft * soft + self.hard * hard).T @ self.x / len(self.x)
        return out + self.ridge * v


def _newton(problem: _Problem, w: FloatArray) -> FloatArray:
    first: float | None = None
    loss = problem.loss(w)
    for _ in range(_STEPS):
        gradient, q, s = problem.at(w)
        size = float(np.linalg.norm(gradient))
        first = size if first is None else first
        if size <= _TOLERANCE * max(first, 1e-30):
            break
        step = _conjugate_gradients(problem, gradient, q, s)
        length = 1.0
        while length > 1e-6:
            candidate = w - length * step
            lower = problem.loss(candidate)
            if lower < loss:
                break
            length /= 2.0
        else:
            break  # at the end of what float64 can tell apart
        w, loss = candidate, lower
    return w


def _conjugate_gradients(
    problem: _Problem, wanted: FloatArray, q: FloatArray, s: FloatArray
) -> FloatArray:
    found = np.zeros_like(wanted)
    residual = wanted.copy()
    direction = residual.copy()
    size = float(np.vdot(residual, residual))
    enough = 1e-20 * size
    for _ in range(_CG_STEPS):
        if size <= enough:
            break
        curved = problem.curvature(direction, q, s)
        length = size / float(np.vdot(direction, curved))
        found += length * direction
        residual -= length * curved
        renewed = float(np.vdot(residual, residual))
        direction = residual + (renewed / size) * direction
        size = renewed
    return found


def softmax(z: FloatArray) -> FloatArray:
    """Of each row."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    out: FloatArray = e / e.sum(axis=1, keepdims=True)
    return out


def _log_softmax(z: FloatArray) -> FloatArray:
    shifted = z - z.max(axis=1, keepdims=True)
    out: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out
