"""The gate of `minibert quantize`: layers that do not bear it are left alone, as few as will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Cosine = Callable[[], float]


def leave_layers_alone(
    names: Sequence[str],
    stages: Sequence[set[str]],
    wanted: float,
    cosine: Cosine,
    quick_cosine: Cosine,
    say: Callable[[str], None],
) -> bool:
    """Fill the sets until the model is as close to its original as wanted.

    Args:
        names: all layers.
        stages: sets of layers that are left alone, each kind of which costs more speed than the one
            before; a set takes in layers only where all of those before it are not enough, which
            then hold every layer.
        wanted: the mean cosine to reach.
        cosine: of the model as the sets say.
        quick_cosine: an estimate, to tell the layers that cost most from the others.
        say: receives a line before each slow step.

    Returns:
        Whether it was reached.
    """
    if cosine() >= wanted:
        return True
    for left_alone in stages:
        left_alone.update(names)
        if cosine() < wanted:
            continue
        say(f"Below {wanted}: looking for the layers that cost most ...")
        order = _by_harm(names, left_alone, quick_cosine)
        low, high = 1, len(order)  # the fewest that are enough
        while low < high:
            middle = (low + high) // 2
            left_alone.difference_update(order[middle:])
            left_alone.update(order[:middle])
            low, high = (low, middle) if cosine() >= wanted else (middle + 1, high)
        left_alone.difference_update(order[low:])
        left_alone.update(order[:low])
        return True
    return False


def _by_harm(names: Sequence[str], left_alone: set[str], cosine: Cosine) -> list[str]:
    """Layers by the cosine that each costs on its own, most harmful first."""
    harm = {}
    for name in names:
        left_alone.discard(name)
        harm[name] = 1.0 - cosine()
        left_alone.add(name)
    return sorted(names, key=lambda name: -harm[name])
