"""Compress a model in every way, and compare: size, speed and fidelity; JSON, a table, a picture.

    python -m benchmarks.compression MODEL --work build/compression --publish

Variants that are not in the work folder yet are made there by `minibert quantize`, `prune` and
`distil`, with the bundled texts; what that took is kept in made.json. Then all are timed in turns
on the bundled texts that calibrate nothing; the original runs in float32. `--publish` writes the
results and the picture to benchmarks/results and the table to docs/compression.md, into the section
that `--section` names. More folders may be named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.environments import CHECKOUT
from benchmarks.markdown import rewrite
from minibert.compress.report import weight_bytes
from minibert.compress.run import PreparedRun, TextRun, encoder_flops
from minibert.compress.texts import split_texts
from minibert.fidelity import compare
from minibert.loading import LoadedModel, load_model

DOCUMENT = CHECKOUT / "docs" / "compression.md"
PICTURE_LINE = "![speed against fidelity]({path})"
SPEEDUPS = (1.2, 1.5, 2.0)


def recipes(speedups: Sequence[float], layers: int) -> dict[str, str]:
    """Name -> the variant that it is made from: "original" or an earlier name.

    What stands behind the last comma of a name is the command that makes it.

    Args:
        speedups: targets of pruning.
        layers: of the distilled student; 0 makes none.
    """
    found = {"quantize": "original", "quantize --no-gate": "original"}
    for speedup in speedups:
        name = f"prune --speedup {speedup:g}"
        found |= {name: "original", f"{name}, quantize --no-gate": name}
    if layers:
        found[f"distil --layers {layers}"] = "original"
    return found


def make_variants(
    original: Path, work: Path, wanted: Mapping[str, str]
) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
    """Make what is not there yet, each by its command in a process of its own.

    Returns:
        Name -> folder, and name -> what making it took, also of those made by earlier runs: seconds
        of the clock, seconds of all cores, and the process's most memory in MB.

    Raises:
        subprocess.CalledProcessError: a command failed; it has said why.
    """
    folders, kept = {"original": original}, work / "made.json"
    costs: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, source in wanted.items():
        folders[name] = work / name.replace("--", "").replace(",", "").replace(" ", "-")
        if folders[name].is_dir():
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = ["-m", "minibert", *name.rpartition(", ")[2].split()]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command, str(folders[source]), str(folders[name])],
            stdout=sys.stderr,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        costs[name] = {
            "seconds": round(time.perf_counter() - begin, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_mb": round(usage.ru_maxrss / 1024),
        }
        kept.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
    return folders, {name: costs[name] for name in wanted if name in costs}


def measure(folders: Mapping[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Size, speed and fidelity of every folder; the first is the original, run in float32."""
    texts = split_texts(None).reporting
    with ExitStack() as stack:
        models = [load_model(folder) for folder in folders.values()]
        inputs = [TextRun(model, texts) for model in models]
        runs = [
            stack.enter_context(PreparedRun(run, dtype="float32" if i == 0 else None))
            for i, run in enumerate(inputs)
        ]
        expected = runs[0].embeddings()
        found = [compare(expected, run.embeddings()) for run in runs]
        for run in runs:
            run.seconds()
        taken = np.array([[run.seconds() for run in runs] for _ in range(rounds)])
    ratios = taken[:, :1] / taken  # of one round: what slows a moment slows both
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
    operations = [
        encoder_flops(m.weights, text_run) for m, text_run in zip(models, inputs, strict=True)
    ]
    return [
        {
            "name": name,
            "bytes": weight_bytes(models[i]),
            "tokens_per_s": round(inputs[i].num_tokens / float(np.median(taken[:, i]))),
            "speedup": round(float(middle[i]), 3),
            "speedup_low": round(float(low[i]), 3),
            "speedup_high": round(float(high[i]), 3),
            "flop_ratio": round(operations[0] / operations[i], 3),
            "mean_cosine": round(found[i].mean_cosine, 5),
            "min_cosine": round(found[i].min_cosine, 5),
            "spearman": round(found[i].spearman, 4),
            "top10_overlap": round(found[i].top10_overlap, 3),
            "shapes": _shapes(models[i]),
        }
        for i, name in enumerate(folders)
    ]


def _shapes(model: LoadedModel) -> list[list[int]]:
    """Heads and feed-forward width of each layer."""
    layers = model.weights.layers
    return [[layer.num_heads, len(layer.intermediate.weight)] for layer in layers]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | files | speed (quartiles) | operations | cosine (worst) | Spearman | top-10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["name"] if row is rows[0] else f"`{row['name']}`"
        lines.append(
            f"| {name} | {row['bytes'] / rows[0]['bytes']:.3f}x | {row['speedup']:.2f}x "
            f"({row['speedup_low']:.2f}-{row['speedup_high']:.2f}) | 1/{row['flop_ratio']:.2f} | "
            f"{row['mean_cosine']:.5f} ({row['min_cosine']:.4f}) | {row['spearman']:.4f} | "
            f"{row['top10_overlap']:.3f} |"
        )
    return "\n".join(lines)


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw speed against fidelity, a point for each variant.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "minibert"  # the same results give the same file
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    kinds = {"int8": "#c8553d", "pruned": "#1f6f8b", "fewer layers": "#7a9e3f", "original": "black"}
    for row in rows:
        name = str(row["name"])
        kind = "original" if row is rows[0] else "fewer layers" if "distil" in name else "pruned"
        kind = "int8" if "quantize" in name else kind
        point = float(row["speedup"]), float(row["spearman"])
        axes.plot(*point, "o", color=kinds[kind])
        label = name.replace("quantize --no-gate", "int8") if "," in name else name
        above = len(axes.texts) % 2 == 0  # neighbours of one height would overlap
        place = (6, 4 if above else -11)
        axes.annotate(label, point, textcoords="offset points", xytext=place, fontsize=8)
    axes.set_xlabel("speed, times the original in float32")
    axes.set_ylabel("Spearman of pairwise cosines with the original")
    axes.set_xlim(right=axes.get_xlim()[1] + 0.7)  # room for the names
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def costs_line(costs: Mapping[str, Mapping[str, float]]) -> str:
    """What making the variants took, in words."""
    parts = [
        f"`{name}` {cost['seconds'] / 60:.1f} minutes ({cost['cpu_seconds'] / 60:.1f} of one core, "
        f"{cost['peak_mb'] / 1000:.1f} GB)"
        for name, cost in costs.items()
    ]
    return f"What making them took: {', '.join(parts)}."


def publish(results: Mapping[str, Any], picture_path: Path, section: str) -> None:
    """Put the table and the picture into docs/compression.md."""
    shown = PICTURE_LINE.format(path=f"../benchmarks/results/{picture_path.name}")
    about = results["device"]
    facts = (
        f"{results['model']} on {about['processor']}, {about['cores']} cores; {results['texts']} "
        f"bundled texts that calibrated nothing; speed is the median of {results['rounds']} rounds "
        f"with quartiles, the variants in turns; commit {results['commit']}, {results['date']}."
    )
    body = f"{facts}\n\n{table(results['models'])}\n\n{shown}"
    if results["cost_to_make"]:
        body += f"\n\n{costs_line(results['cost_to_make'])}"
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(rewrite(text, body, section), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, measure, write."""
    parser = argparse.ArgumentParser(description="Compare compressed models with their original.")
    parser.add_argument("original", type=Path)
    parser.add_argument("more", type=Path, nargs="*", help="folders of further variants")
    parser.add_argument("--work", type=Path, required=True, help="where variants are kept")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--speedups", type=float, nargs="*", default=SPEEDUPS)
    parser.add_argument("--layers", type=int, help="of the student; 0: none  [default: half]")
    parser.add_argument("--make-only", action="store_true", help="measure nothing")
    parser.add_argument("--section", default="compression", help="of the document")
    parser.add_argument("--publish", action="store_true", help="write results and documentation")
    chosen = parser.parse_args(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    measured_commit = record.commit()
    layers = chosen.layers
    if layers is None:
        layers = max(1, len(load_model(chosen.original).weights.layers) // 2)
    folders, costs = make_variants(chosen.original, chosen.work, recipes(chosen.speedups, layers))
    if chosen.make_only:
        return
    folders.update({folder.name: folder for folder in chosen.more})
    rows = measure(folders, chosen.rounds)
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": record.device(),
        **measured_commit,
        "model": chosen.original.absolute().name,
        "texts": len(split_texts(None).reporting),
        "rounds": chosen.rounds,
        "cost_to_make": costs,
        "models": rows,
    }
    print(table(rows))
    folder = CHECKOUT / "benchmarks" / "results" if chosen.publish else chosen.work
    name = f"{results['date']}-{results['model'].lower()}-compression"
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path = folder / f"{name}.svg"
    try:
        picture(rows, path)
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    if chosen.publish:
        publish(results, path, chosen.section)


if __name__ == "__main__":
    main()
