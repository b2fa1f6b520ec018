"""Compare sparse variants of a model with one another and with structured pruning of its size.

    python -m benchmarks.sparsity build/models/all-MiniLM-L6-v2 --output build/sparsity

Half of the weights of every layer are left out, by each pattern and method; of the pruned model
(`minibert prune --flops 0.5`) half of the operations remain. Fidelity is that to the original on
the bundled texts that calibrated nothing. Speed depends on the pattern alone and is measured once
for each, in turns with the original, as processor time of a pass. Fidelities are kept in the output
folder as long as they belong to the same model and texts, so that a run that was stopped goes on;
then table.md is written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from minibert.compress.progress import Journal, identity_of
from minibert.compress.prune import PruneTarget, prune_model
from minibert.compress.run import PreparedRun, TextRun
from minibert.compress.sparsify import sparsify_layers
from minibert.compress.texts import split_texts
from minibert.fidelity import Fidelity, compare
from minibert.loading import LoadedModel, load_model
from minibert.weights.checkpoint import EncoderWeights
from minibert.weights.masks import Method, Pattern
from minibert.weights.sparse_stored import Sparsity
from minibert.weights.sparsity import Reconstruct, SparsityOptions

PATTERNS: tuple[Pattern, ...] = ("unstructured", "2:4", "block")
CHOICES: tuple[tuple[str, Method, Reconstruct, int], ...] = (
    ("magnitude", "magnitude", "none", 0),
    ("magnitude, columns", "magnitude", "columns", 0),
    ("activation", "activation", "none", 0),
    ("activation, columns", "activation", "columns", 0),
    ("activation, least squares", "activation", "least-squares", 0),
    ("activation, least squares, 8 rounds of regrowing", "activation", "least-squares", 8),
)
MEASURES = ("mean_cosine", "min_cosine", "spearman", "top10_overlap")


class Bench:
    """A model, its texts, and what is known of its variants."""

    def __init__(self, model: Path, output: Path, texts: list[str] | None) -> None:
        """Load and tokenize."""
        self.model = model
        self.output = output
        self.texts = texts
        self.loaded = load_model(model)
        calibration = split_texts(texts).calibration
        self.run = TextRun(self.loaded, calibration)
        self.reporting = TextRun(self.loaded, split_texts(None).reporting)
        self.expected = self.reporting.embeddings()
        identity = identity_of(self.loaded.weights.files, calibration, "sparsity")
        self.journal = Journal(output / "fidelity.json", identity)

    def fidelity(self, name: str, weights: Callable[[], EncoderWeights]) -> list[float]:
        """The four measures of a variant; made and run only where they are not known."""
        found: list[Fidelity] = []

        def measure(part: str) -> float:
            if not found:
                print(f"{name} ...", flush=True)
                found.append(compare(self.expected, self.reporting.embeddings(weights())))
            return float(getattr(found[0], part))

        return [self.journal.value(f"{name}: {p}", lambda p=p: measure(p)) for p in MEASURES]  # type: ignore[misc]

    def sparse(self, options: SparsityOptions) -> EncoderWeights:
        """The model with weights left out."""
        return sparsify_layers(self.run, options).weights

    def pruned(self) -> LoadedModel:
        """The structured model, written once."""
        folder = self.output / "structured"
        if not folder.exists():
            prune_model(self.model, folder, PruneTarget(flops=0.5), texts=self.texts)
        return load_model(folder)

    def speeds(self, rounds: int) -> dict[str, tuple[float, float, float]]:
        """Name -> median and quartiles of the original's time over the variant's."""
        fastest = {
            pattern: self.sparse(SparsityOptions(pattern, reconstruct="none"))
            for pattern in PATTERNS
        }
        texts = split_texts(None).reporting
        with ExitStack() as stack:
            runs = [stack.enter_context(PreparedRun(self.reporting))]
            for pattern, weights in fastest.items():
                config = replace(self.loaded.config, sparsity=Sparsity(pattern, 0.5))
                told = TextRun(replace(self.loaded, config=config), texts)
                runs.append(stack.enter_context(PreparedRun(told, weights)))
            runs.append(stack.enter_context(PreparedRun(TextRun(self.pruned(), texts))))
            for run in runs:
                run.seconds()
            taken = np.array([[_cpu_seconds(run) for run in runs] for _ in range(rounds)])
        ratios = taken[:, :1] / taken  # of one round: what slows a moment slows both
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
        names = ("original", *PATTERNS, "structured")
        return {
            name: (float(median[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)
        }


def _cpu_seconds(run: PreparedRun) -> float:
    """Processor time of one pass: what other programs take of the cores does not count."""
    begin = time.process_time()
    run.seconds()
    return time.process_time() - begin


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Compare sparse variants of a model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="calibrate with these, one a line")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="only the best method of each pattern")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    texts = None
    if arguments.texts is not None:
        texts = arguments.texts.read_text(encoding="utf-8").splitlines()
    bench = Bench(arguments.model, arguments.output, texts)
    rows: list[tuple[str, str, list[float]]] = []
    choices = CHOICES[-1:] if arguments.quick else CHOICES
    for label, method, reconstruct, regrow in choices:
        for pattern in PATTERNS:
            options = SparsityOptions(pattern, 0.5, method, reconstruct, regrow)

            def weights(options: SparsityOptions = options) -> EncoderWeights:
                return bench.sparse(options)

            rows.append((pattern, label, bench.fidelity(f"{pattern}, {label}", weights)))
    structured = bench.fidelity("structured", lambda: bench.pruned().weights)
    rows.append(("structured", "`prune --flops 0.5`", structured))
    speeds = bench.speeds(arguments.rounds)
    lines = [
        "| pattern | method | speed (quartiles) | cosine (worst) | Spearman | top-10 |",
        "|---|---|---|---|---|---|",
    ]
    order = (*PATTERNS, "structured")
    for name, label, (mean, worst, spearman, overlap) in sorted(
        rows, key=lambda row: order.index(row[0])
    ):
        speed, low, high = speeds[name]
        lines.append(
            f"| {name} | {label} | {speed:.2f}x ({low:.2f}-{high:.2f}) | {mean:.4f} "
            f"({worst:.3f}) | {spearman:.4f} | {overlap:.3f} |"
        )
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
