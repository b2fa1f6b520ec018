"""`minibert sparsify MODEL OUTPUT --pattern block`: a model with single weights left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from minibert.cli.compression import compression_options, local_model, read_texts, say, show
from minibert.cli.options import debug_option, progress_option
from minibert.cli.values import Choice, FloatRange, IntRange

if TYPE_CHECKING:
    from minibert.weights.masks import Method, Pattern
    from minibert.weights.sparsity import Reconstruct


@click.command()
@compression_options
@click.option(
    "--pattern",
    type=Choice(["2:4", "block", "unstructured"]),
    required=True,
    help="Where zeros may be: two of each four inputs; the same inputs for 16 outputs, which the "
    "CPU kernels profit from; anywhere.",
)
@click.option(
    "--sparsity",
    type=FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of each matrix that is left out.",
)
@click.option(
    "--method",
    type=Choice(["activation", "magnitude"]),
    default="activation",
    show_default=True,
    help="What ranks weights: their size, or their size times that of their inputs.",
)
@click.option(
    "--reconstruct",
    type=Choice(["least-squares", "columns", "none"]),
    default="least-squares",
    show_default=True,
    help="How the rest makes up: the best fit, column after column, or not at all.",
)
@click.option(
    "--regrow",
    type=IntRange(min=0),
    default=0,
    show_default=True,
    help="Rounds in which weights that do least are exchanged for others that would do more.",
)
@progress_option
@debug_option
def command(
    model: str,
    output: Path,
    texts_file: str | None,
    field_name: str,
    max_texts: int | None,
    overwrite: bool,
    device: str,
    pattern: str,
    sparsity: float,
    method: str,
    reconstruct: str,
    regrow: int,
    progress: bool,
) -> None:
    """Write a copy of MODEL with weights left out one by one to the folder OUTPUT.

    The layers' matrices keep their shapes; the file holds what is kept and where. No labels and no
    retraining: what goes is made good in the weights that stay, by least squares on the texts.

    MODEL is never changed, and OUTPUT is whole or not there. The table compares the two on texts
    that did not calibrate.
    """
    texts = read_texts(texts_file, field_name, max_texts)

    from minibert.compress.sparsify import sparsify_model
    from minibert.weights.sparsity import SparsityOptions

    options = SparsityOptions(
        cast("Pattern", pattern),
        sparsity,
        cast("Method", method),
        cast("Reconstruct", reconstruct),
        regrow,
    )
    result = sparsify_model(
        local_model(model),
        output,
        options,
        texts=texts,
        overwrite=overwrite,
        device=device,
        say=say,
        progress=progress,
    )
    worst = max(result.layers, key=lambda layer: layer.output_error)
    click.echo(f"largest error of a layer's outputs: {worst.output_error:.1%}, {worst.name}")
    show(result.report, output)
