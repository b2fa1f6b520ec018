"""`minibert prune MODEL OUTPUT --speedup 1.5`: a model with fewer heads, neurons and layers."""

from __future__ import annotations

from pathlib import Path

import click

from minibert.cli.compression import compression_options, local_model, read_texts, say, show
from minibert.cli.options import debug_option, progress_option
from minibert.cli.values import FloatRange, IntRange
from minibert.errors import InputError


@click.command()
@compression_options
@click.option(
    "--speedup",
    type=FloatRange(min=1.0),
    help="Times as fast as the original, measured on this machine.",
)
@click.option(
    "--flops",
    type=FloatRange(0.0, 1.0, min_open=True),
    help="Share of the operations that may remain.",
)
@click.option(
    "--latency-ms",
    type=FloatRange(0.0, min_open=True),
    help="Milliseconds that one text of usual length may take, alone, on this machine.",
)
@click.option(
    "--drop-layers",
    type=IntRange(min=0),
    default=0,
    show_default=True,
    help="Whole layers to drop before anything else, the least harmful ones.",
)
@click.option(
    "--align", is_flag=True, help="Add a last linear map from the new vectors to the original's."
)
@progress_option
@debug_option
def command(
    model: str,
    output: Path,
    texts_file: str | None,
    field_name: str,
    max_texts: int | None,
    device: str,
    overwrite: bool,
    speedup: float | None,
    flops: float | None,
    latency_ms: float | None,
    drop_layers: int,
    align: bool,
    progress: bool,
) -> None:
    """Write a smaller copy of MODEL to the folder OUTPUT, without retraining and without labels.

    Attention heads and feed-forward neurons are cut out, unevenly over the layers, as many as the
    target asks for and those that cost least at the model's output; the matrices that remain are
    refitted by least squares. A run that is stopped goes on where it was when it is started again.

    MODEL is never changed, and OUTPUT is whole or not there. The table compares the two on texts
    that did not calibrate.
    """
    if speedup is None and flops is None and latency_ms is None and drop_layers == 0:
        raise InputError(
            "the target must be given by --speedup, --flops, --latency-ms or --drop-layers, "
            "got none; --speedup 1 copies the model as it is"
        )
    texts = read_texts(texts_file, field_name, max_texts)

    from minibert.compress.prune import PruneTarget, prune_model

    target = PruneTarget(
        speedup=speedup, flops=flops, latency_ms=latency_ms, drop_layers=drop_layers
    )
    result = prune_model(
        local_model(model),
        output,
        target,
        texts=texts,
        align=align,
        device=device,
        overwrite=overwrite,
        say=say,
        progress=progress,
    )
    for layer, (heads, width) in zip(result.kept_layers, result.shapes, strict=True):
        click.echo(f"layer {layer}: {heads} heads, {width} neurons")
    show(result.report, output)
