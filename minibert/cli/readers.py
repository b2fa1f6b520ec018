"""Texts from files and pipes, one at a time, whatever their format and size.

| format | a text is | a file may end in |
|---|---|---|
| lines | a line | .txt, .md, .log, or nothing |
| jsonl | the string under `field` of the object on a line | .jsonl, .ndjson |
| csv | the cell under the header `field` | .csv |
| parquet | the string in the column `field` | .parquet |

The first three are UTF-8, with or without a byte order mark, lines ending in LF or CRLF, and may
carry `.gz` after their ending. Only blank lines between JSON objects or CSV rows are skipped: an
empty line of a text file is an empty text, so that row i belongs to line i. What cannot be read is
an `InputError` that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from minibert.cli.parquet import pyarrow
from minibert.errors import InputError

FORMATS = ("lines", "jsonl", "csv", "parquet")
STDIN = "-"

_BOM = b"\xef\xbb\xbf"
_FORMAT_OF_SUFFIX = {
    "": "lines",
    ".txt": "lines",
    ".md": "lines",
    ".log": "lines",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_PARQUET_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or standard input, and how it is read.

    Attributes:
        path: as the user wrote it; None is standard input.
        format: one of `FORMATS`.
        size_bytes: of the file; None where it is not known beforehand.
        gzipped: whether the name ends in `.gz`.
    """

    path: str | None
    format: str
    size_bytes: int | None = None
    gzipped: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if self.path is None else self.path


@dataclass
class TextReader:
    """All the texts of a run, in order: the literal ones, then those of every source.

    Attributes:
        literals: texts given on the command line.
        sources: files to read after them.
        field_name: JSON key, CSV header or Parquet column that holds the text.
        done_bytes: bytes of the sources that were read so far.
    """

    literals: Sequence[str] = ()
    sources: Sequence[Source] = ()
    field_name: str = "text"
    done_bytes: int = field(default=0, init=False)

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all sources, or None where one of them has no known size."""
        sizes = [source.size_bytes for source in self.sources]
        return None if None in sizes else sum(cast("list[int]", sizes))

    def __iter__(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            InputError: naming the file and the line that cannot be read.
            MissingDependencyError: for Parquet without pyarrow.
        """
        for number, text in enumerate(self.literals, start=1):
            yield _checked(text, f"--text number {number}")
        for source in self.sources:
            before = self.done_bytes
            for text, position in _read(source, self.field_name):
                self.done_bytes = before + position
                yield text
            self.done_bytes = before + (source.size_bytes or 0)


def find_source(name: str, input_format: str | None, *, argument: str = "INPUT") -> Source:
    """Check that `name` can be opened and decide how to read it, before a model is loaded.

    Args:
        name: a path, or `-` for standard input.
        input_format: one of `FORMATS`, or None to go by the file's ending.
        argument: where the name was given, for messages; only `INPUT` goes with --input-format.

    Raises:
        InputError: where there is no such file or its format is not known.
    """
    if name == STDIN:
        return Source(None, input_format or "lines")
    try:
        status = os.stat(name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{argument} must be a readable file, got {name!r}: {reason}") from error
    if stat.S_ISDIR(status.st_mode) or not os.access(name, os.R_OK):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a file without read permission"
        raise InputError(f"{argument} must be a readable file, got {kind}: {name!r}")
    path = Path(name)
    gzipped = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if gzipped else path.suffix.lower()
    chosen = input_format or _FORMAT_OF_SUFFIX.get(suffix)
    if chosen is None:
        endings = ", ".join(filter(None, _FORMAT_OF_SUFFIX))
        advice = f"; --input-format says how to read it: {', '.join(FORMATS)}"
        raise InputError(
            f"{argument} must end in one of {endings}, got {name!r}"
            + (advice if argument == "INPUT" else "")
        )
    size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
    return Source(name, chosen, size_bytes, gzipped)


def check_stdin_once(names: Sequence[str | None]) -> None:
    """Refuse a second `-`: what the first reads is gone.

    Raises:
        InputError: where standard input is named twice.
    """
    if names.count(STDIN) > 1:
        raise InputError(
            f"standard input must be named once, got {names.count(STDIN)} times {STDIN!r}"
        )


def _read(source: Source, field_name: str) -> Iterator[tuple[str, int]]:
    """Yield (text, bytes of the file read so far)."""
    with ExitStack() as stack:
        if source.path is None:
            if sys.stdin is None:
                raise InputError("standard input must be open, it is closed")
            raw = cast(BinaryIO, sys.stdin.buffer)
        else:
            raw = stack.enter_context(open(source.path, "rb"))
        if source.format == "parquet":
            yield from _parquet(source, raw, field_name)
            return
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if source.gzipped else raw
        lines = _lines(source.name, stream)
        texts = {"lines": _plain, "jsonl": _jsonl, "csv": _csv}[source.format]
        for text in texts(source.name, lines, field_name):
            yield text, 0 if source.size_bytes is None else raw.tell()


def _lines(name: str, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, decoded line with its ending)."""
    try:
        for number, raw in enumerate(stream, start=1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if not line:
                continue
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{name} must be UTF-8, got byte 0x{line[error.start]:02x} "
                    f"on line {number} at column {error.start + 1}; convert the file to UTF-8"
                ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{name} must be a whole gzip file, got: {error}") from error


def _plain(name: str, lines: Iterator[tuple[int, str]], field_name: str) -> Iterator[str]:
    for _, line in lines:
        yield line.removesuffix("\n").removesuffix("\r")


def _jsonl(name: str, lines: Iterator[tuple[int, str]], field_name: str) -> Iterator[str]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: must be a JSON object, got invalid JSON: {error}"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: must be a JSON object, got {_json_type(record)}")
        if field_name not in record:
            keys = ", ".join(map(repr, list(record)[:8])) or "none"
            raise InputError(
                f"{where}: must have the field {field_name!r}, got {keys}; --field names another"
            )
        text = record[field_name]
        if not isinstance(text, str):
            raise InputError(
                f"{where}: field {field_name!r} must be a string, got {_json_type(text)}"
            )
        yield _checked(text, where)


def _csv(name: str, lines: Iterator[tuple[int, str]], field_name: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB
    rows = csv.reader((line for _, line in lines), strict=True)
    column: int | None = None
    width = 0
    try:
        for row in rows:
            if not row:
                continue
            if column is None:
                if row.count(field_name) != 1:
                    raise InputError(
                        f"{name}, line {rows.line_num}: the header must have the field "
                        f"{field_name!r} once, got {', '.join(map(repr, row[:8]))}; "
                        "--field names another"
                    )
                column, width = row.index(field_name), len(row)
            elif any(row[width:]):  # most often an unquoted comma: the rest of a text would be lost
                raise InputError(
                    f"{name}, line {rows.line_num}: must have as many fields as the header, "
                    f"{width}, got {len(row)}; a text with a comma must stand in quotation marks"
                )
            elif column >= len(row):
                raise InputError(
                    f"{name}, line {rows.line_num}: must have the field {field_name!r} in column "
                    f"{column + 1}, got a row of {len(row)}"
                )
            else:
                yield row[column]
    except csv.Error as error:
        raise InputError(f"{name}, line {rows.line_num}: must be CSV, got: {error}") from error


def _parquet(source: Source, raw: BinaryIO, field_name: str) -> Iterator[tuple[str, int]]:
    pa, pq = pyarrow()
    name = source.name
    try:
        # A pipe cannot seek, and Parquet begins at its end.
        file = pq.ParquetFile(raw if raw.seekable() else io.BytesIO(raw.read()))
        names = file.schema_arrow.names
        if names.count(field_name) != 1:
            raise InputError(
                f"{name}: must have the column {field_name!r} once, "
                f"got {', '.join(map(repr, names[:8])) or 'none'}; --field names another"
            )
        kind = file.schema_arrow.field(field_name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
            raise InputError(f"{name}: column {field_name!r} must hold strings, got {kind}")
        num_rows, size_bytes, row = file.metadata.num_rows, source.size_bytes or 0, 0
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[field_name]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text is None:
                    raise InputError(
                        f"{name}, row {row}: column {field_name!r} must be a string, got null"
                    )
                yield text, size_bytes * row // num_rows
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{name} must be a readable Parquet file, got: {error}") from error


def _checked(text: str, where: str) -> str:
    """Return `text`; a lone surrogate, which JSON can spell and UTF-8 cannot, is refused."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: must be valid Unicode, got the lone surrogate {text[error.start]!r}"
        ) from error
    return text


def _json_type(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
