"""Pictures of a results file, as SVG; matplotlib draws them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import contenders, is_minibert, name

KINDS = ("throughput", "latency", "footprint", "texts")
OURS, THEIRS = "#1f6f8b", "#b8b8b8"


def draw(results: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw every picture that the results have figures for.

    Args:
        results: of `record.assemble`.
        stem: path of the pictures without `-<what>.svg`.

    Returns:
        The files written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "minibert"  # the same results give the same file
    matplotlib.rcParams["axes.spines.top"] = matplotlib.rcParams["axes.spines.right"] = False
    written = []
    makers = (_throughput, _latency, _footprint, _texts)
    for what, make in zip(KINDS, makers, strict=True):
        figure = make(results)
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{what}.svg")
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            written.append(path)
    return written


def _figure(rows: int, columns: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.34 * rows + 1.2))
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def _bars(axis: Any, results: Mapping[str, Any], values: Mapping[str, float]) -> None:
    names = [name(results, key) for key in values]
    colours = [OURS if is_minibert(results, key) else THEIRS for key in values]
    axis.barh(names, list(values.values()), color=colours)


def _throughput(results: Mapping[str, Any]) -> Any:
    """Ratio on mixed texts, with the lowest and the highest round."""
    found = {k: e["ratio"] for k, e in contenders(results, "mixed").items() if e["ratio"]}
    if not found:
        return None
    order = sorted(found, key=lambda key: found[key]["median"])
    figure, (axis,) = _figure(len(order))
    _bars(axis, results, {key: found[key]["median"] for key in order})
    below = [found[key]["median"] - found[key]["low"] for key in order]
    above = [found[key]["high"] - found[key]["median"] for key in order]
    middles = [found[key]["median"] for key in order]
    axis.errorbar(middles, range(len(order)), xerr=[below, above], fmt="none", ecolor="black")
    axis.set_xlabel(f"mixed texts: tokens/s over {name(results, results['baseline'])}")
    return figure


def _latency(results: Mapping[str, Any]) -> Any:
    """Median and 99th percentile of single texts; one far outside is written at the edge."""
    found = contenders(results, "single")
    if not found:
        return None
    order = sorted(found, key=lambda key: -found[key]["median_ms"])
    figure, (axis,) = _figure(len(order))
    _bars(axis, results, {key: found[key]["median_ms"] for key in order})
    slow = {place: found[key]["p99_ms"] for place, key in enumerate(order)}
    edge = min(1.05 * max(slow.values()), 2 * max(found[key]["median_ms"] for key in order))
    within = {place: value for place, value in slow.items() if value <= edge}
    axis.plot(list(within.values()), list(within), "|k", markersize=9)
    for place in slow.keys() - within.keys():
        axis.text(edge, place, f"{slow[place]:.0f} \N{RIGHTWARDS ARROW}", ha="right", va="center")
    axis.set_xlim(0, edge)
    axis.set_xlabel("one text of about 19 tokens: median and (|) 99th percentile, ms")
    return figure


def _footprint(results: Mapping[str, Any]) -> Any:
    """Peak memory, cold start and install size, side by side."""
    found = contenders(results, "footprint")
    if not found or any(entry["peak_bytes"] is None for entry in found.values()):
        return None
    order = sorted(found, key=lambda key: -found[key]["peak_bytes"])
    figure, axes = _figure(len(order), 3)
    columns = {
        "peak memory, MB": {key: found[key]["peak_bytes"] / 1e6 for key in order},
        "cold start, s": {key: found[key]["cold_start_s"]["median"] for key in order},
        "installed, MB": {key: found[key]["installed_bytes"] / 1e6 for key in order},
    }
    for axis, (label, values) in zip(axes, columns.items(), strict=True):
        _bars(axis, results, values)
        axis.set_xlabel(label)
    return figure


def _texts(results: Mapping[str, Any]) -> Any:
    """Cost of a token over the number of texts in a call."""
    found = {key: costs for key, costs in contenders(results, "texts").items() if len(costs) > 1}
    if not found:
        return None
    figure, (axis,) = _figure(8)
    for key, costs in found.items():
        counts = [int(count) for count in costs]
        values = [entry["us_per_token"] for entry in costs.values()]
        axis.plot(counts, values, "o-", label=name(results, key))
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("texts in one call")
    axis.set_ylabel("µs a token")
    axis.legend(frameon=False)
    return figure
