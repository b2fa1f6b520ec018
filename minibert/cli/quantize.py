"""`minibert quantize MODEL OUTPUT`: a model with int8 or int4 weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from minibert.cli.compression import compression_options, local_model, read_texts, say, show
from minibert.cli.options import debug_option
from minibert.cli.values import Choice, FloatRange
from minibert.errors import InputError

if TYPE_CHECKING:
    from minibert.weights.quantize import Rounding


@click.command()
@compression_options
@click.option("--bits", type=Choice(["8", "4"]), default="8", show_default=True)
@click.option(
    "--embedding-bits",
    type=Choice(["8", "32"]),
    default="8",
    show_default=True,
    help="Of the embedding tables; 32 leaves them as they are.",
)
@click.option(
    "--rounding",
    type=Choice(["second-order", "nearest"]),
    default="second-order",
    show_default=True,
    help="Whether a column's rounding is made good in the columns after it.",
)
@click.option(
    "--min-cosine",
    type=FloatRange(0.0, 1.0, min_open=True),
    help="Leave layers in float, the most harmful first, until the mean cosine is this; with "
    "--static they get their own ranges back before.  [default: 0.9996; 0.99 with --static]",
)
@click.option("--no-gate", is_flag=True, help="Leave no layer in float, whatever it costs.")
@click.option("--migrate", is_flag=True, help="Move outliers of the attention into the weights.")
@click.option(
    "--static",
    type=Choice(["percentile", "mse", "kl", "minmax"]),
    help="Fix the range of each layer's inputs by this method; without it each token has its own, "
    "which is closer to the original.",
)
@debug_option
def command(
    model: str,
    output: Path,
    texts_file: str | None,
    field_name: str,
    max_texts: int | None,
    device: str,
    overwrite: bool,
    bits: str,
    embedding_bits: str,
    rounding: str,
    min_cosine: float | None,
    no_gate: bool,
    migrate: bool,
    static: str | None,
) -> None:
    """Write a copy of MODEL with int8 or int4 weights to the folder OUTPUT.

    The copy loads like any model and runs in int8 where the device can. MODEL is never changed, and
    OUTPUT is whole or not there. The table compares the two on texts that calibrated neither.
    """
    if no_gate and min_cosine is not None:
        raise InputError("--min-cosine must not come with --no-gate, got both")
    texts = read_texts(texts_file, field_name, max_texts)

    from minibert.compress.quantize import (
        MIN_COSINE,
        STATIC_MIN_COSINE,
        QuantizeOptions,
        quantize_model,
    )

    if min_cosine is None:
        min_cosine = MIN_COSINE if static is None else STATIC_MIN_COSINE

    options = QuantizeOptions(
        bits=int(bits),
        embedding_bits=int(embedding_bits),
        rounding=cast("Rounding", rounding),
        min_cosine=None if no_gate else min_cosine,
        migrate=migrate,
        static=static,
    )
    result = quantize_model(
        local_model(model),
        output,
        options=options,
        texts=texts,
        device=device,
        overwrite=overwrite,
        say=say,
    )
    usual = f"int{bits}"
    for layer in result.layers:
        if layer.state != usual:
            click.echo(f"{layer.name}: {layer.state}")
    show(result.report, output)
