"""`minibert demo`: a search by meaning in a hundred short texts, with scores and timings."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

import minibert
from minibert.cli import machine
from minibert.cli.fetch import MODEL_NAME, default_models_folder, obtain_model
from minibert.cli.options import debug_option
from minibert.cli.values import IntRange, PathTo
from minibert.data import demo_questions, demo_texts, demo_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WIDTH = 80
_BAR_CELLS = 12
_EIGHTHS = " ▏▎▍▌▋▊▉"


@click.command()
@click.option("--model", help="Model folder or name.  [default: all-MiniLM-L6-v2, downloaded once]")
@click.option(
    "--models-folder",
    type=PathTo(file_okay=False, path_type=Path),
    help="Where the downloaded model is kept.  [default: build/models of a checkout]",
)
@click.option("--query", "queries", multiple=True, help="Ask this instead (repeatable).")
@click.option("--top", type=IntRange(min=1), default=3, show_default=True, help="Answers to show.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, numpy or cuda.")
@click.option("--threads", type=IntRange(min=1), help="CPU threads to use.")
@debug_option
def command(
    model: str | None,
    models_folder: Path | None,
    queries: tuple[str, ...],
    top: int,
    device: str,
    threads: int | None,
) -> None:
    """Search a hundred short texts by meaning, with a real model.

    The first run downloads the model (84 MB).
    """
    folder = model or obtain_model(
        models_folder or default_models_folder(), lambda line: click.echo(line, err=True)
    )
    questions = list(queries) or demo_questions()
    texts = demo_texts()

    start = time.perf_counter()
    from minibert.engine import Engine

    with Engine.from_pretrained(str(folder), device=device, threads=threads) as engine:
        load_s = time.perf_counter() - start
        num_tokens = sum(cast("list[int]", engine.token_count(texts)))
        start = time.perf_counter()
        vectors = engine.encode(texts)  # (num_texts, dimension)
        encode_s = time.perf_counter() - start
        start = time.perf_counter()
        asked = engine.encode(questions)  # (num_questions, dimension)
        ask_ms = (time.perf_counter() - start) * 1000 / len(questions)
        scores = engine.similarity(asked, vectors)  # (num_questions, num_texts)

    name = MODEL_NAME if model is None else Path(model).name
    click.secho(f"minibert {minibert.__version__}  {name} on {machine.cpu_model()}", bold=True)
    click.echo(f"  ready in {load_s:.2f} s, the imports of NumPy and the tokenizer included")
    click.echo(
        f"  {len(texts)} texts, {num_tokens:,} tokens -> {vectors.shape[1]} numbers each "
        f"in {encode_s:.2f} s: {num_tokens / encode_s:,.0f} tokens/s"
    )
    click.echo(f"  {ask_ms:.1f} ms a question")
    if model is None and not queries:
        _show_agreement(asked)
    for question, row in zip(questions, scores, strict=True):
        _show_answers(question, row, texts, top)
    click.echo()
    click.secho('Ask your own: minibert demo --query "why do cats purr"', dim=True)


def _show_agreement(asked: NDArray[np.float32]) -> None:
    """Compare the questions' vectors with those that sentence-transformers gave."""
    difference = float(abs(asked - demo_vectors()).max())
    click.echo(f"  largest difference from sentence-transformers' own vectors: {difference:.1e}")


def _show_answers(
    question: str, row: NDArray[np.floating[Any]], texts: list[str], top: int
) -> None:
    """Print the best answer whole and the others cut to a line."""
    click.echo()
    click.secho(textwrap.shorten(question, _WIDTH, placeholder=" ..."), bold=True, fg="cyan")
    best = row.argsort(kind="stable")[::-1][:top]
    indent = " " * (_BAR_CELLS + 10)
    for rank, index in enumerate(best):
        score = float(row[index])
        bar = click.style(_bar(score), fg="green" if rank == 0 else "bright_black")
        lines = textwrap.wrap(texts[index], _WIDTH - len(indent)) or [""]
        if rank > 0:
            lines = [textwrap.shorten(texts[index], _WIDTH - len(indent), placeholder=" ...")]
        click.echo(f"  {score:5.2f} {bar} {lines[0]}")
        for line in lines[1:]:
            click.echo(indent + line)


def _bar(score: float) -> str:
    """Return `_BAR_CELLS` characters filled to `score` between 0 and 1, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, score)) * _BAR_CELLS * 8)
    full, part = divmod(eighths, 8)
    bar = "█" * full + (_EIGHTHS[part] if part else "")
    if not (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf"):
        bar = "#" * round(eighths / 8)
    return bar.ljust(_BAR_CELLS)
