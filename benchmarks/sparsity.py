"""Make sparse variants of a model and compare them with structured pruning of the same size.

    python -m benchmarks.sparsity build/models/all-MiniLM-L6-v2 --output build/sparsity

Writes a folder of every pattern and method, half of the weights left out of each layer, and one of
`minibert prune --flops 0.5`; then table.md and results.json: fidelity on texts that calibrated
nothing, speed measured in turns. `--texts FILE` calibrates with other texts than the bundled ones;
the bundled ones report either way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.compression import Row, measure, write_results
from minibert.compress.prune import PruneTarget, prune_model
from minibert.compress.quantize import QuantizeOptions, quantize_model
from minibert.compress.sparsify import sparsify_model
from minibert.weights.sparsity import Method, Pattern, Reconstruct, SparsityOptions

PATTERNS: tuple[Pattern, ...] = ("unstructured", "2:4", "block")
CHOICES: tuple[tuple[Method, Reconstruct], ...] = (
    ("magnitude", "none"),
    ("magnitude", "columns"),
    ("activation", "none"),
    ("activation", "columns"),
    ("activation", "least-squares"),
)
REGROW = 8


def variants() -> dict[str, SparsityOptions]:
    """Name -> options, the simplest first."""
    found = {}
    for pattern in PATTERNS:
        for method, reconstruct in CHOICES:
            name = f"{pattern} {method} {reconstruct}"
            found[name] = SparsityOptions(pattern, 0.5, method, reconstruct)
        found[f"{pattern} regrow"] = SparsityOptions(pattern, 0.5, regrow=REGROW)
    return found


def write_variants(model: Path, output: Path, texts: list[str] | None, names: str) -> list[Path]:
    """Write the folders that are not there yet."""
    folders = []
    for name, options in variants().items():
        if names and not name.startswith(tuple(names.split(","))):
            continue
        folder = output / name.replace(":", "").replace(" ", "-")
        if not folder.exists():
            print(f"writing {folder.name} ...", flush=True)
            sparsify_model(model, folder, options, texts=texts)
        folders.append(folder)
    pruned = output / "structured"
    if not pruned.exists():
        print("writing structured ...", flush=True)
        prune_model(model, pruned, PruneTarget(flops=0.5), texts=texts)
    folders.append(pruned)
    for name in ("24-regrow", "block-regrow"):
        both = output / f"{name}-int8"
        if (output / name).exists() and not both.exists():
            print(f"writing {both.name} ...", flush=True)
            free = QuantizeOptions(min_cosine=None)
            quantize_model(output / name, both, options=free, texts=texts)
        if both.exists():
            folders.append(both)
    return folders


def main() -> None:
    """Write, measure, tabulate."""
    parser = argparse.ArgumentParser(description="Compare sparse variants of a model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="calibrate with these, one a line")
    parser.add_argument("--only", default="", help="variants whose names begin so, by commas")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    texts = None
    if arguments.texts is not None:
        texts = arguments.texts.read_text(encoding="utf-8").splitlines()
    folders = write_variants(arguments.model, arguments.output, texts, arguments.only)
    rows: list[Row] = measure([arguments.model, *folders], arguments.rounds)
    write_results(rows, arguments.output, arguments.rounds)


if __name__ == "__main__":
    main()
