"""Registers, shared memory and spills of every kernel, as ptxas reports them; no GPU is needed.

python -m benchmarks.gpu.resources            rewrites the table in docs/kernels.md
python -m benchmarks.gpu.resources --print    prints it
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minibert.kernels.cuda import loader, nvrtc
from minibert.kernels.cuda.catalogue import ARCHITECTURES, catalogue, target_of
from minibert.kernels.cuda.launch import Launch

BEGIN = "<!-- resources: written by benchmarks/gpu/resources.py -->"
END = "<!-- resources end -->"
DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"


def measure(capability: int, source: str, launches: list[Launch]) -> dict[str, str]:
    """Kernel instance -> its cell: registers, shared memory in KB, spilled bytes if any."""
    cubin = nvrtc.compile_cubin(
        loader.read_source(source),
        name=source,
        arch=f"sm_{capability}",
        name_expressions=[made.kernel for made in launches],
    )
    cells = {}
    for made in launches:
        found = cubin.resources[cubin.names[made.kernel]]
        smem_kb = (found.smem_bytes + made.smem_bytes) / 1024
        spilled = found.spill_store_bytes + found.spill_load_bytes
        cells[made.kernel] = f"{found.registers}, {smem_kb:.0f}" + (
            f", **{spilled}**" if spilled else ""
        )
    return cells


def table() -> str:
    """The table in Markdown: one row per instance, one column per architecture."""
    jobs: list[tuple[int, str, list[Launch]]] = []
    for capability in ARCHITECTURES:
        by_source: dict[str, list[Launch]] = defaultdict(list)
        for made in catalogue(target_of(capability)):
            by_source[made.source].append(made)
        jobs += [(capability, source, made) for source, made in by_source.items()]
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(lambda job: measure(*job), jobs))
    rows: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for (capability, source, _), cells in zip(jobs, measured, strict=True):
        for kernel, cell in cells.items():
            rows[source, _short(kernel)][capability] = cell
    major, minor = nvrtc.version()
    lines = [
        f"NVRTC {major}.{minor}. Each cell: registers per thread, shared memory per block in KB; "
        "spilled bytes in bold where there are any. A dash: that architecture takes another "
        "instance.",
        "",
        "| kernel | " + " | ".join(f"sm_{capability}" for capability in ARCHITECTURES) + " |",
        "|---|" + "---|" * len(ARCHITECTURES),
    ]
    for (_, kernel), found in sorted(rows.items()):
        columns = [found.get(capability, "-") for capability in ARCHITECTURES]
        lines.append(f"| `{kernel}` | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _short(kernel: str) -> str:
    """The instance without the ring depth, which alone differs between architectures."""
    if "Tile<" not in kernel:
        return kernel
    head, tile = kernel.split("Tile<")
    return f"{head}Tile<{', '.join(tile.rstrip('>').split(', ')[:-1])}, stages>>"


def rewrite(text: str, content: str) -> str:
    """Put content between the markers of a document."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main() -> None:
    """Measure, and print or rewrite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", dest="only_print")
    arguments = parser.parse_args()
    content = table()
    if arguments.only_print:
        print(content)
    else:
        DOCUMENT.write_text(rewrite(DOCUMENT.read_text(encoding="utf-8"), content))


if __name__ == "__main__":
    main()
