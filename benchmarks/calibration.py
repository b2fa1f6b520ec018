"""Compare four static thresholds for 8-bit activations, and the dynamic ranges of the kernels.

    python -m benchmarks.calibration build/models/all-MiniLM-L6-v2 --output build/calibration

Writes table.md (per layer and end to end), results.json, and, where matplotlib is installed, a
picture of each layer's histogram with the four thresholds. In the first two tables weights stay
float, so that the figures are about activations alone, simulated in NumPy; the third is the engine
with int8 weights (`calibration_engine.py`). Calibration and report use different texts.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import minibert
from benchmarks.calibration_engine import engine_table, measure_engine
from benchmarks.simulated import SimulatedOps
from minibert.compress.run import TextRun
from minibert.compress.texts import split_texts
from minibert.fidelity import Fidelity, compare
from minibert.loading import load_model
from minibert.ops.recording import LinearEvent, StatisticsObserver
from minibert.weights.calibrate import METHODS, activation_range
from minibert.weights.quantize import quantize_activations


class ErrorObserver:
    """Relative error of each layer's product when its input is clipped to a range."""

    def __init__(
        self, weights: dict[str, Any], ranges: Mapping[str, dict[str, Any] | None]
    ) -> None:
        """Hold weight (out, in) by layer, and range by method and layer; None is dynamic."""
        self.weights = weights
        self.ranges = ranges
        self.wrong = {method: dict.fromkeys(weights, 0.0) for method in ranges}
        self.whole = dict.fromkeys(weights, 0.0)

    def __call__(self, event: LinearEvent) -> None:
        """Add one batch."""
        weight = self.weights[event.name]
        self.whole[event.name] += float(np.square(event.hidden @ weight.T).sum())
        for method, ranges in self.ranges.items():
            limits = None if ranges is None else ranges[event.name]
            seen = quantize_activations(event.hidden, threshold=limits)
            self.wrong[method][event.name] += float(
                np.square((seen - event.hidden) @ weight.T).sum()
            )

    def relative(self, method: str, name: str) -> float:
        """Root of the summed squares of the error over those of the product."""
        return float(np.sqrt(self.wrong[method][name] / self.whole[name]))


def picture(histogram: Any, thresholds: dict[str, float], name: str, path: Path) -> None:
    """Draw a histogram on a logarithmic scale, and where each method cuts it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    width = histogram.limit / histogram.counts.size
    coarse = histogram.counts.reshape(256, -1).sum(axis=1)
    edges = np.arange(257) * width * (histogram.counts.size // 256)
    axes.stairs(coarse, edges, fill=True, color="0.75")
    axes.set_yscale("log")
    axes.set_xlabel(f"magnitude of the inputs of {name}")
    axes.set_ylabel("values")
    for number, (method, threshold) in enumerate(thresholds.items()):
        axes.axvline(threshold, color=f"C{number}", label=f"{method} {threshold:.2f}")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Measure, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15, help="of the engine's timing")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    loaded = load_model(arguments.model)
    texts = split_texts(None)
    observer = StatisticsObserver()
    TextRun(loaded, texts.calibration).embeddings(observer=observer)
    statistics = observer.statistics
    weights = {
        f"layer.{i}.{part}": getattr(layer, part).weight
        for i, layer in enumerate(loaded.weights.layers)
        for part in ("qkv", "attention_output", "intermediate", "output")
    }
    ranges: dict[str, dict[str, Any]] = {
        method: {name: activation_range(statistics[name], method) for name in weights}
        for method in METHODS
    }
    reporting = TextRun(loaded, texts.reporting)
    errors = ErrorObserver(weights, {**ranges, "dynamic": None})
    expected = reporting.embeddings(observer=errors)

    def fidelity(**keywords: Any) -> Fidelity:
        found = reporting.embeddings(wrap=lambda ops: SimulatedOps(**keywords))
        return compare(expected, found)

    whole = {f"static {m}": fidelity(ranges=ranges[m]) for m in METHODS}
    whole["dynamic, symmetric"] = fidelity(asymmetric=False)
    whole["dynamic, with zero point (the kernels')"] = fidelity(asymmetric=True)

    columns = [*METHODS, "dynamic"]
    lines = [
        "Relative error of each layer's product, in percent; in brackets the threshold.",
        "",
        f"| layer | largest | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for name in weights:
        cells = []
        for method in columns:
            error = f"{100 * errors.relative(method, name):.2f}"
            if method != "dynamic":
                low, high = ranges[method][name]
                error += f" ({max(-low, high):.2f})"
            cells.append(error)
        lines.append(f"| {name} | {statistics[name].absmax.max():.2f} | {' | '.join(cells)} |")
    lines += [
        "",
        "| end to end, all layers | mean cosine | worst | Spearman | top-10 overlap |",
        "|---|---|---|---|---|",
    ]
    for label, kept in whole.items():
        lines.append(
            f"| {label} | {kept.mean_cosine:.5f} | {kept.min_cosine:.5f} | {kept.spearman:.4f} "
            f"| {kept.top10_overlap:.3f} |"
        )
    engine = measure_engine(arguments.model, texts.reporting, arguments.output, arguments.rounds)
    lines += ["", *engine_table(engine)]
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = {
        "minibert": minibert.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "calibration_texts": len(texts.calibration),
        "reporting_texts": len(texts.reporting),
        "ranges": ranges,
        "layer_error": {m: {n: errors.relative(m, n) for n in weights} for m in columns},
        "fidelity": {label: asdict(kept) for label, kept in whole.items()},
        "engine": {label: asdict(result) for label, result in engine.items()},
    }
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(lines))
    try:
        import matplotlib
    except ImportError:
        print("no pictures: matplotlib is not installed")
        return
    print(f"pictures by matplotlib {matplotlib.__version__}")
    for name in weights:
        found = statistics[name].histogram
        thresholds = {method: METHODS[method](found) for method in METHODS}
        picture(found, thresholds, name, arguments.output / f"{name}.png")


if __name__ == "__main__":
    main()
