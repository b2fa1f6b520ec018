"""Compare compressed models with their original: size, speed and fidelity; a table, a picture.

    python benchmarks/compression.py build/models/all-MiniLM-L6-v2 build/q8 build/p15 \
        --output build/compression

The variants are folders written by `minibert quantize`, `prune` and `distil`. All are timed in
turns on the same texts, the bundled ones that calibrate nothing; the original runs in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import minibert
from minibert.compress.report import weight_bytes
from minibert.compress.run import PreparedRun, TextRun, encoder_flops
from minibert.compress.texts import split_texts
from minibert.fidelity import compare
from minibert.loading import load_model


def picture(rows: list[dict[str, object]], path: Path) -> None:
    """Draw speed against fidelity, a point for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        x, y = float(str(row["speedup"])), float(str(row["spearman"]))
        axes.plot(x, y, "o", color="C0")
        axes.annotate(str(row["name"]), (x, y), textcoords="offset points", xytext=(6, 4))
    axes.set_xlabel("speed, times the original in float32")
    axes.set_ylabel("Spearman of pairwise cosines with the original")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Measure, and write the folder."""
    parser = argparse.ArgumentParser(description="Compare compressed models with their original.")
    parser.add_argument("original", type=Path)
    parser.add_argument("variants", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    texts = split_texts(None).reporting
    folders = [arguments.original, *arguments.variants]
    with ExitStack() as stack:
        models = [load_model(folder) for folder in folders]
        inputs = [TextRun(model, texts) for model in models]
        runs = [
            stack.enter_context(PreparedRun(run, dtype="float32" if i == 0 else None))
            for i, run in enumerate(inputs)
        ]
        expected = runs[0].embeddings()
        found = [compare(expected, run.embeddings()) for run in runs]
        taken = np.array([[run.seconds() for run in runs] for _ in range(arguments.rounds)])
    median = np.median(taken, axis=0)
    ratios = taken[:, :1] / taken  # of one round: what slows a moment slows both
    rows = []
    for i, (folder, model) in enumerate(zip(folders, models, strict=True)):
        flops = encoder_flops(models[0].weights, inputs[0]) / encoder_flops(
            model.weights, inputs[i]
        )
        rows.append(
            {
                "name": "original" if i == 0 else folder.name,
                "bytes": weight_bytes(model),
                "tokens_per_s": inputs[i].num_tokens / float(median[i]),
                "speedup": round(float(np.median(ratios[:, i])), 3),
                "speedup_low": round(float(np.quantile(ratios[:, i], 0.25)), 3),
                "speedup_high": round(float(np.quantile(ratios[:, i], 0.75)), 3),
                "flop_ratio": round(flops, 3),
                "mean_cosine": round(found[i].mean_cosine, 5),
                "min_cosine": round(found[i].min_cosine, 5),
                "spearman": round(found[i].spearman, 4),
                "top10_overlap": round(found[i].top10_overlap, 3),
            }
        )
    lines = [
        "| model | files | speed (quartiles) | operations | cosine (worst) | Spearman | top-10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = float(str(row["bytes"])) / float(str(rows[0]["bytes"]))
        lines.append(
            f"| {row['name']} | {share:.3f}x | {row['speedup']:.2f}x "
            f"({row['speedup_low']:.2f}-{row['speedup_high']:.2f}) | 1/{row['flop_ratio']:.2f} | "
            f"{row['mean_cosine']:.5f} ({row['min_cosine']:.4f}) | {row['spearman']:.4f} | "
            f"{row['top10_overlap']:.3f} |"
        )
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {
        "minibert": minibert.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "texts": len(texts),
        "rounds": arguments.rounds,
        "models": rows,
    }
    (arguments.output / "results.json").write_text(json.dumps(facts, indent=1) + "\n")
    print("\n".join(lines))
    try:
        picture(rows, arguments.output / "speed-fidelity.png")
    except ImportError:
        print("no picture: matplotlib is not installed")


if __name__ == "__main__":
    main()
