"""What fixed ranges cost and gain in the engine itself: int8 weights, the kernels' arithmetic.

Part of `benchmarks/calibration.py`. Models are written by `minibert quantize` (no layer left alone,
second-order rounding, int8 embeddings) and run as any model is. Speed is that of a pass in
processor time, the variants in turns, relative to dynamic ranges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibert.compress.quantize import QuantizeOptions, quantize_model
from minibert.compress.run import PreparedRun, TextRun
from minibert.fidelity import Fidelity, compare
from minibert.loading import load_model
from minibert.weights.calibrate import METHODS

DYNAMIC = "dynamic, with zero point and excess"


@dataclass(frozen=True, slots=True)
class EngineResult:
    """One variant: fidelity to the original in float32; quartiles of the speed over dynamic."""

    fidelity: Fidelity
    speed: tuple[float, float, float]


def measure_engine(
    model: Path, texts: Sequence[str], work: Path, rounds: int
) -> dict[str, EngineResult]:
    """Write what is not there yet, and measure all.

    Args:
        model: the original.
        texts: to report on; the bundled ones calibrate.
        work: where models are kept.
        rounds: of the timing.
    """
    variants: dict[str, str | None] = {DYNAMIC: None} | {f"static {m}": m for m in METHODS}
    folders = {}
    for name, method in variants.items():
        folders[name] = work / f"int8-{method or 'dynamic'}"
        if not folders[name].is_dir():
            options = QuantizeOptions(min_cosine=None, static=method)
            quantize_model(model, folders[name], options=options)
    original = TextRun(load_model(model), texts).embeddings()
    with ExitStack() as stack:
        runs = [
            stack.enter_context(PreparedRun(TextRun(load_model(folder), texts), dtype=None))
            for folder in folders.values()
        ]
        found = [compare(original, run.embeddings()) for run in runs]
        taken = np.array([[cpu_seconds(run) for run in runs] for _ in range(rounds)])
    ratios = taken[:, :1] / taken  # of one round: what slows a moment slows both
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
    return {
        name: EngineResult(found[i], (float(middle[i]), float(low[i]), float(high[i])))
        for i, name in enumerate(folders)
    }


def cpu_seconds(run: PreparedRun) -> float:
    """Processor time of one pass: other programs that use the cores count less."""
    begin = time.process_time()
    run.seconds()
    return time.process_time() - begin


def engine_table(results: dict[str, EngineResult]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| the engine, int8 weights too | mean cosine | worst | Spearman | top-10 overlap "
        "| speed (quartiles) |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        kept, (middle, low, high) = result.fidelity, result.speed
        lines.append(
            f"| {name} | {kept.mean_cosine:.5f} | {kept.min_cosine:.5f} | {kept.spearman:.4f} "
            f"| {kept.top10_overlap:.3f} | {middle:.2f}x ({low:.2f}-{high:.2f}) |"
        )
    return lines
