from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.weights.checkpoint import LinearWeights
from minibert.weights.classifier_fit import NO_LABEL, fit_classifier


def problem(texts: int = 200, features: int = 12, classes: int = 4) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((texts, features))
    logits = 2.0 * x @ rng.standard_normal((features, classes)) + rng.standard_normal(classes)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    labels[::3] = NO_LABEL
    start = LinearWeights(
        rng.standard_normal((classes, features)).astype(np.float32),
        rng.standard_normal(classes).astype(np.float32),
    )
    return x, logits, labels, start


def by_torch(
    x: Any, logits: Any, labels: Any, start: LinearWeights, temperature: float, alpha: float
) -> tuple[Any, Any]:
    """The same loss by torch's own functions and gradients, minimised by LBFGS in float64."""
    import torch
    from torch.nn import functional

    rows, teacher = torch.from_numpy(x), torch.from_numpy(logits)
    known = torch.from_numpy(labels != NO_LABEL)
    targets = torch.from_numpy(np.maximum(labels, 0))
    soft = torch.where(known, alpha, 1.0).double()
    first = [torch.from_numpy(a.astype(np.float64)) for a in (start.weight, start.bias)]
    weight, bias = (a.clone().requires_grad_() for a in first)
    # The ridge: 0.001 of the mean square of a feature, the constant 1 of the bias among them.
    ridge = 1e-3 * float(np.square(np.c_[x, np.ones(len(x))]).mean())
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=2000,
        tolerance_grad=1e-11,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Any:
        solver.zero_grad()
        z = rows @ weight.T + bias
        distance = functional.cross_entropy(
            z / temperature, (teacher / temperature).softmax(1), reduction="none"
        )
        hard = functional.cross_entropy(z, targets, reduction="none")
        mean = (soft * temperature**2 * distance + (1 - soft) * hard).mean()
        away = (weight - first[0]).square().sum() + (bias - first[1]).square().sum()
        total = mean + 0.5 * ridge * away
        total.backward()
        return total

    solver.step(loss)
    return weight.detach().numpy(), bias.detach().numpy()


@pytest.mark.parametrize(
    ("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.5), (4.0, 0.1), (2.0, 0.0)], ids=str
)
def test_the_fit_is_the_minimum_that_torch_finds(temperature: float, alpha: float) -> None:
    x, logits, labels, start = problem()
    found = fit_classifier(x, logits, labels, start, temperature=temperature, alpha=alpha)
    weight, bias = by_torch(x, logits, labels, start, temperature, alpha)
    # LBFGS stops at a gradient of 1e-11; what is left is the rounding of the result to float32.
    np.testing.assert_allclose(found.weight, weight, atol=2e-5)
    assert found.bias is not None
    np.testing.assert_allclose(found.bias, bias, atol=2e-5)


def test_soft_targets_alone_give_the_teachers_layer_back() -> None:
    x, logits, labels, start = problem()
    nobody = np.full_like(labels, NO_LABEL)
    found = fit_classifier(x, logits, nobody, start, temperature=1.0, ridge=1e-9)
    assert found.bias is not None
    z = x @ found.weight.T + found.bias
    centred = [values - values.mean(axis=1, keepdims=True) for values in (z, logits)]
    np.testing.assert_allclose(*centred, atol=1e-2)  # the ridge, on a loss of no width


def test_labels_pull_where_the_teacher_is_wrong() -> None:
    x, logits, _, start = problem()
    swapped = logits[:, ::-1].argmax(axis=1)
    rates = []
    for alpha in (1.0, 0.5, 0.0):
        found = fit_classifier(x, logits, swapped, start, alpha=alpha)
        assert found.bias is not None
        rates.append(((x @ found.weight.T + found.bias).argmax(axis=1) == swapped).mean())
    assert rates[0] < rates[1] < rates[2]


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
    ],
    ids=str,
)
def test_options_are_checked(keywords: dict[str, float], word: str) -> None:
    x, logits, labels, start = problem()
    with pytest.raises(InputError, match=word):
        fit_classifier(x, logits, labels, start, **keywords)
    with pytest.raises(InputError, match="labels must be 0 to 3"):
        fit_classifier(x, logits, labels + 9, start)
