"""`minibert distil MODEL OUTPUT --layers 3`: a student cut from its teacher."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minibert.cli.compression import compression_options, local_model, read_texts, say, show
from minibert.cli.options import debug_option


@click.command()
@compression_options
@click.option(
    "--layers", type=click.IntRange(min=1), required=True, help="Layers that the student has."
)
@click.option(
    "--flops",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Share of the teacher's operations that the student may need: narrows what is left.",
)
@click.option(
    "--align/--no-align",
    default=True,
    show_default=True,
    help="Add a last linear map from the student's vectors to the teacher's.",
)
@click.option(
    "--progress/--no-progress", default=None, help="Show a bar.  [default: on a terminal]"
)
@debug_option
def command(
    model: str,
    output: Path,
    texts_file: str | None,
    field_name: str,
    max_texts: int | None,
    overwrite: bool,
    layers: int,
    flops: float | None,
    align: bool,
    progress: bool | None,
) -> None:
    """Write a student of MODEL with fewer layers to the folder OUTPUT.

    The layers that are missed least are left out. Each layer that stays is fitted, in closed form
    and without labels, to give what the teacher has at the same depth, from what the student has
    there. There is no training loop: a trained student of this shape is better.
    """
    texts = read_texts(texts_file, field_name, max_texts)

    from minibert.compress.distil import distil_model

    result = distil_model(
        local_model(model),
        output,
        layers,
        flops=flops,
        texts=texts,
        align=align,
        overwrite=overwrite,
        say=say,
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    click.echo(f"layers kept: {', '.join(map(str, result.kept_layers))}")
    if result.report is not None:
        show(result.report, output)
