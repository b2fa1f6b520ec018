"""What the compressing commands share: where a model and its texts come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minibert.cli.readers import TextReader, find_source
from minibert.cli.values import IntRange
from minibert.errors import InputError

if TYPE_CHECKING:
    from minibert.compress.report import Report

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_OPTIONS = (
    click.argument("model"),
    click.argument("output", type=click.Path(path_type=Path)),
    click.option(
        "--texts",
        "texts_file",
        help="Texts to calibrate with; every fourth is held back for the report.  [default: a "
        "bundled set]",
    ),
    click.option(
        "--field",
        "field_name",
        default="text",
        show_default=True,
        help="JSON key, CSV header or Parquet column of the text.",
    ),
    click.option("--max-texts", type=IntRange(min=1), help="Read at most N texts."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="Runs the model and the report: auto, cpu, cuda, numpy or emulator.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the output folder if it exists."),
)


def compression_options(function: Decorated) -> Decorated:
    """Add MODEL, OUTPUT and the options about texts."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def local_model(name: str) -> Path:
    """Return the model's folder; a name of the hub is looked up as `encode` does."""
    from minibert.hub import find_model

    return find_model(name)


def read_texts(texts_file: str | None, field_name: str, max_texts: int | None) -> list[str] | None:
    """Read the texts, or return None for the bundled ones.

    Raises:
        InputError: `--max-texts` without `--texts`.
    """
    if texts_file is None:
        if max_texts is not None:
            raise InputError("--max-texts must come with --texts, which is missing")
        return None
    texts = []
    source = find_source(texts_file, None, argument="--texts")
    for text in TextReader((), [source], field_name):
        texts.append(text)
        if max_texts is not None and len(texts) >= max_texts:
            break
    return texts


def say(line: str) -> None:
    """Show progress on stderr."""
    click.echo(line, err=True)


def show(report: Report | None, output: Path) -> None:
    """Write the table to stdout; None is a copy of the model as it is."""
    if report is None:
        click.echo(f"nothing was asked for, and nothing is changed: written to {output}")
        return
    click.echo(report.table())
    click.echo(f"written to {output}")
