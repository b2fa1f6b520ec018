"""`minibert distil MODEL OUTPUT --layers 3`: a student cut from its teacher."""

from __future__ import annotations

from pathlib import Path

import click

from minibert.cli.compression import compression_options, local_model, read_texts, say, show
from minibert.cli.options import debug_option, progress_option
from minibert.cli.readers import TextReader, check_stdin_once, find_source
from minibert.cli.values import FloatRange, IntRange


@click.command()
@compression_options
@click.option("--layers", type=IntRange(min=1), required=True, help="Layers that the student has.")
@click.option("--heads", type=IntRange(min=1), help="Heads of each of its layers.")
@click.option(
    "--intermediate", type=IntRange(min=1), help="Feed-forward width of each of its layers."
)
@click.option(
    "--flops",
    type=FloatRange(0.0, 1.0, min_open=True),
    help="Share of the teacher's operations that the student may need: narrows what is left.",
)
@click.option(
    "--labels",
    "labels_file",
    help="Labels of the texts of --texts, a line each, by number or name; for a classifier.",
)
@click.option(
    "--temperature",
    type=FloatRange(0.0, min_open=True),
    default=2.0,
    show_default=True,
    help="Softens the teacher's answers; for a classifier.",
)
@click.option(
    "--alpha",
    type=FloatRange(0.0, 1.0),
    default=0.5,
    show_default=True,
    help="Share of the teacher's answers where there are labels, too.",
)
@click.option(
    "--align/--no-align",
    default=True,
    show_default=True,
    help="Add a last linear map from the student's vectors to the teacher's.",
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
    layers: int,
    heads: int | None,
    intermediate: int | None,
    flops: float | None,
    labels_file: str | None,
    temperature: float,
    alpha: float,
    align: bool,
    progress: bool,
) -> None:
    """Write a student of MODEL with fewer layers to the folder OUTPUT.

    The layers that are missed least are left out. Each layer that stays is fitted, in closed form
    and without labels, to give what the teacher has at the same depth, from what the student has
    there. There is no training loop: a trained student of this shape is better. With --heads and
    --intermediate the layers are narrower, too.

    Of a BertForSequenceClassification the head is fitted to the teacher's answers, softened by
    --temperature, and to --labels where they are given.
    """
    check_stdin_once((texts_file, labels_file))
    texts = read_texts(texts_file, field_name, max_texts)

    labels = None
    if labels_file is not None:
        source = find_source(labels_file, None, argument="--labels")
        labels = list(TextReader((), [source], "label"))[:max_texts]

    from minibert.compress.classifier import HeadOptions
    from minibert.compress.distil import distil_model

    result = distil_model(
        local_model(model),
        output,
        layers,
        heads=heads,
        intermediate=intermediate,
        flops=flops,
        classify=HeadOptions(labels, temperature, alpha),
        texts=texts,
        align=align,
        device=device,
        overwrite=overwrite,
        say=say,
        progress=progress,
    )
    click.echo(f"layers kept: {', '.join(map(str, result.kept_layers))}")
    if result.head is not None:
        click.echo(f"the teacher's label is kept for {result.head.agreement:.1%} of the texts")
        if result.head.accuracy is not None:
            click.echo(
                f"labels found: {result.head.accuracy:.1%}, "
                f"by the teacher {result.head.teacher_accuracy:.1%}"
            )
    show(result.report, output)
