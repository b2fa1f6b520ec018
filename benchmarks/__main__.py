"""`python -m benchmarks`: install, measure, write results, pictures and tables.

    python -m benchmarks                 the whole run, at most 20 minutes after installing
    python -m benchmarks --quick         smaller, at most 4 minutes; touches no committed file
    python -m benchmarks setup           only install the contenders and convert the model
    python -m benchmarks report [FILE]   only rewrite tables from a results file, or from all

An interrupted run continues when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ceilings, markdown, models, pictures, record, report
from benchmarks.contenders import BASELINE, all_contenders, choose
from benchmarks.crew import Settings
from benchmarks.driver import WorkerProblem
from benchmarks.environments import (
    CHECKOUT,
    CONVERTER,
    REQUIREMENTS,
    EnvironmentProblem,
    Environments,
)
from benchmarks.harness import Run
from minibert.cli import machine
from minibert.kernels.cpu.cores import usable_cores

BUILD = CHECKOUT / "build"
RESULTS = CHECKOUT / "benchmarks" / "results"
QUICK = {"rounds": 3, "minutes": 4.0, "most_texts": 256, "scaling_counts": (100, 1000)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; return the exit status."""
    options = parse(arguments)
    try:
        if options.command == "report":
            for path in [Path(options.file)] if options.file else recorded(RESULTS):
                rewrite_pages(json.loads(path.read_text(encoding="utf-8")))
        elif options.command == "setup":
            return set_up()
        else:
            measure(options)
    except (WorkerProblem, ValueError, OSError) as problem:
        say(f"error: {problem}")
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", nargs="?", choices=("run", "setup", "report"), default="run")
    parser.add_argument("file", nargs="?", help="results file, for report")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    parser.add_argument(
        "--model", default=models.MINILM, help=f"{', '.join(models.MODEL_NAMES)} or a folder"
    )
    parser.add_argument("--contenders", help="keys, separated by commas")
    parser.add_argument("--baseline", default=BASELINE, help="key that ratios refer to")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each contender")
    parser.add_argument("--rounds", type=int, help="of each workload")
    parser.add_argument("--minutes", type=float, help="bound of the run")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> Path:
    """A whole run; return the results file."""
    features = machine.cpu_features() or []
    keys = options.contenders.split(",") if options.contenders else None
    contenders = choose(all_contenders(features), keys)
    changes: dict[str, Any] = dict(QUICK) if options.quick else {}
    for name in ("threads", "rounds", "minutes"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    settings = Settings(**changes)
    model = models.find(options.model, BUILD / "models", say)
    chosen = {"quick": options.quick, **dataclasses.asdict(settings)}
    commit = record.commit()
    identity = {
        **commit,
        "model": model.name,
        "baseline": options.baseline,
        "contenders": [contender.key for contender in contenders],
        "settings": chosen,
    }
    state = BUILD / "benchmarks" / f"run-{model.name}{'-quick' if options.quick else ''}.json"
    if options.fresh:
        state.unlink(missing_ok=True)
    environments = Environments(BUILD / "peers", say)
    before = ceilings.measure(features, threads=settings.threads, scratch=state.parent)
    moments = ceilings.Ceilings(before, threads=settings.threads, scratch=state.parent)
    run = Run(
        contenders,
        model,
        environments,
        settings,
        baseline=options.baseline,
        state=state,
        identity=identity,
        say=say,
        ceiling_now=moments.now,
    )
    stages = run.run()
    after = ceilings.measure(features, threads=settings.threads, scratch=state.parent)
    found_ceilings = ceilings.highest(before, after)
    found = record.assemble(run, stages, found_ceilings, chosen, commit)
    folder = state.parent / "results" if options.quick else RESULTS
    path = record.save(found, folder)
    state.unlink(missing_ok=True)
    say(f"results: {path.relative_to(CHECKOUT)}")
    try:
        for picture in pictures.draw(found, path.with_suffix("")):
            say(f"picture: {picture.relative_to(CHECKOUT)}")
    except ImportError:
        say("no pictures: matplotlib is not installed")
    print(report.full(found))
    if not options.quick:
        rewrite_pages(found)
    return path


def set_up() -> int:
    """Make every environment; return 1 where one cannot be made."""
    environments = Environments(BUILD / "peers", say)
    status = 0
    for name in REQUIREMENTS:
        try:
            environments.python(name)
        except EnvironmentProblem as problem:
            say(f"{name} cannot be had: {problem}")
            status = 1 if name != CONVERTER else status
    return status


def rewrite_pages(found: dict[str, Any]) -> None:
    """Put the tables where the pages have markers for them."""
    marker = record.markers(found)
    stem = record.file_name(found).removesuffix(".json")
    names = [f"{stem}-{kind}.svg" for kind in pictures.KINDS]
    drawn = [f"../benchmarks/results/{name}" for name in names if (RESULTS / name).is_file()]
    pages = {"README.md": report.summary(found), "docs/benchmarks.md": report.full(found, drawn)}
    for page, body in pages.items():
        path = CHECKOUT / page
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if f"<!-- {marker}:start -->" not in text:
            say(f"{page} has no markers {marker}, left as it is")
            continue
        path.write_text(markdown.rewrite(text, body, marker), encoding="utf-8")
        say(f"{page} rewritten")


def recorded(folder: Path) -> list[Path]:
    """The results files, the latest last; those of benchmarks.compression are others.

    Raises:
        ValueError: there is none.
    """
    every = sorted(folder.glob("*.json"))
    found = [path for path in every if not path.stem.endswith("-compression")]
    if not found:
        raise ValueError(f"{folder.relative_to(CHECKOUT)} must hold a results file, it has none")
    return found


def say(line: str) -> None:
    """A line of progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
