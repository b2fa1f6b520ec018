"""`minibert encode MODEL [INPUT...] -o OUT`: texts of any number to vectors, in constant memory."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from minibert.cli.atomic import AtomicFile
from minibert.cli.options import debug_option, engine_options, progress_option
from minibert.cli.progress import Progress
from minibert.cli.readers import FORMATS, STDIN, TextReader, check_stdin_once, find_source
from minibert.cli.values import Choice, IntRange
from minibert.cli.writers import open_writer, output_format
from minibert.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minibert.engine import Engine
    from minibert.precision import Precision


@click.command()
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option("--text", "literals", multiple=True, help="Encode this text (repeatable).")
@click.option(
    "--input-format",
    type=Choice(FORMATS),
    help="How INPUT is read.  [default: by its ending; lines for standard input]",
)
@click.option(
    "--field",
    "field_name",
    default="text",
    show_default=True,
    help="JSON key, CSV header or Parquet column of the text.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File ending in .npy, .jsonl or .parquet.  [default: JSONL to standard output]",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--with-text", is_flag=True, help="Keep each text beside its vector.")
@click.option("--prompt", help="Put this before every text.")
@click.option("--prompt-name", help="Put the model's prompt of this name before every text.")
@click.option(
    "--normalize", "normalize_embeddings", is_flag=True, help="Scale vectors to length 1."
)
@click.option("--truncate-dim", type=IntRange(min=1), help="Keep the first N numbers.")
@click.option(
    "--precision",
    type=Choice(["float32", "int8", "uint8", "binary", "ubinary"]),
    default="float32",
    show_default=True,
    help="Type of the numbers written.",
)
@click.option("--batch-size", type=IntRange(min=1), help="Texts in a batch, at most.")
@click.option(
    "--chunk-size",
    type=IntRange(min=1),
    default=2048,
    show_default=True,
    help="Texts held in memory at a time.",
)
@progress_option
@engine_options
@debug_option
def command(
    model: str,
    inputs: tuple[str, ...],
    literals: tuple[str, ...],
    input_format: str | None,
    field_name: str,
    output: Path | None,
    overwrite: bool,
    with_text: bool,
    prompt: str | None,
    prompt_name: str | None,
    normalize_embeddings: bool,
    truncate_dim: int | None,
    precision: str,
    batch_size: int | None,
    chunk_size: int,
    progress: bool,
    **engine_keywords: Any,
) -> None:
    """Encode texts into vectors.

    MODEL is a folder, or the name of a model on the hub. INPUT is a file, or - for standard input:
    text (a text a line), JSONL, CSV or Parquet, the first three also with .gz. Inputs and outputs
    may be larger than memory.

    The output file is whole or not there: it takes its name when the last vector is on the disk.
    """
    if not inputs and not literals:
        raise click.UsageError("nothing to encode: give INPUT, - for standard input, or --text")
    if prompt is not None and prompt_name is not None:
        raise InputError("--prompt must not come with --prompt-name, got both")
    check_stdin_once(inputs)
    reader = TextReader(literals, [find_source(name, input_format) for name in inputs], field_name)
    target = _output_file(output, overwrite, inputs)
    if target is None and sys.stdout is None:
        raise InputError("standard output must be open, it is closed; -o names a file")
    chosen = "jsonl" if output is None else output_format(output)
    if with_text and chosen == "npy":
        raise InputError(".npy must hold vectors only, got --with-text; write .jsonl instead")

    import numpy as np

    from minibert.cli.calibrated import CalibratedWriter
    from minibert.engine import Engine

    # int8 and uint8 need the ranges of all vectors, so the stream itself stays float32.
    calibrated = precision in ("int8", "uint8")
    encode_keywords: dict[str, Any] = {
        "prompt": prompt,
        "prompt_name": prompt_name,
        "normalize_embeddings": normalize_embeddings,
        "truncate_dim": truncate_dim,
        "batch_size": batch_size,
        "precision": "float32" if calibrated else precision,
    }
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.from_pretrained(model, **engine_keywords))
        chunks = _encode(engine, reader, chunk_size, encode_keywords)
        first = next(chunks, None)
        if first is None:
            warnings.warn("there is no text in the input", stacklevel=1)
            first = engine.encode([], **encode_keywords), []
        dtype, dimension = first[0].dtype, first[0].shape[1]

        if target is None:
            file = cast(BinaryIO, sys.stdout.buffer)
        else:
            stack.push(target)  # first, so that an interruption in between leaves no partial file
            file = target.__enter__()
        written = np.dtype(precision) if calibrated else dtype
        writer = open_writer(file, chosen, written, dimension, with_text=with_text)
        if calibrated:
            folder = target.path.parent if target else None
            writer = CalibratedWriter(
                writer, cast("Precision", precision), dimension, folder, with_text=with_text
            )
        stack.enter_context(closing(writer))
        bar = stack.enter_context(Progress(reader.total_bytes, shown=progress))
        for vectors, texts in chain([first], chunks):
            writer.write(vectors, texts)
            bar.update(len(texts), reader.done_bytes)
        writer.finish()


def _output_file(
    output: Path | None, overwrite: bool, inputs: tuple[str, ...]
) -> AtomicFile | None:
    """Check the output before a model is loaded; None is standard output."""
    if output is None:
        return None
    for name in inputs:
        if name != STDIN and output.exists() and output.samefile(name):
            raise InputError(f"output must be another file than the input, got '{output}'")
    return AtomicFile(output, overwrite=overwrite)


def _encode(
    engine: Engine, reader: TextReader, chunk_size: int, keywords: dict[str, Any]
) -> Iterator[tuple[NDArray[np.generic], list[str]]]:
    """Yield the vectors of a chunk, (n, dimension), and its n texts."""
    pending: deque[str] = deque()

    def texts() -> Iterator[str]:
        for text in reader:
            pending.append(text)
            yield text

    for vectors in engine.encode_stream(texts(), chunk_size=chunk_size, **keywords):
        yield vectors, [pending.popleft() for _ in range(len(vectors))]
