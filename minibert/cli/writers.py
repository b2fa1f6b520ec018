"""Vectors to .npy, JSONL or Parquet, a chunk at a time; the number of rows is not known before.

| format | content |
|---|---|
| npy | (num_texts, dimension) array |
| jsonl | `{"index": i, "embedding": [...]}`, with `"text"` on request |
| parquet | columns `index` and `embedding` (fixed-size list), with `text` on request |

JSON numbers carry nine significant digits, which give every float32 back exactly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from minibert.cli.parquet import pyarrow
from minibert.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT_OF_SUFFIX = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_NPY_HEADER_BYTES = 128


class VectorWriter(Protocol):
    """What receives the chunks of a run."""

    def write(self, vectors: NDArray[np.generic], texts: Sequence[str]) -> None:
        """Append (n, dimension) vectors; their n texts are looked at where rows carry them."""

    def finish(self) -> None:
        """Write what belongs at the end, or at the beginning: the file is whole."""

    def close(self) -> None:
        """Let go of everything but the file; without `finish`, the file stays a fragment."""


def output_format(path: Path) -> str:
    """Return npy, jsonl or parquet by the file's ending.

    Raises:
        InputError: for another ending.
        MissingDependencyError: for Parquet without pyarrow.
    """
    chosen = _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if chosen is None:
        raise InputError(
            f"output must end in one of {', '.join(_FORMAT_OF_SUFFIX)}, got '{path}'; "
            "without -o, JSONL goes to standard output"
        )
    if chosen == "parquet":
        pyarrow()
    return chosen


def open_writer(
    file: BinaryIO, chosen: str, dtype: np.dtype[Any], dimension: int, *, with_text: bool
) -> VectorWriter:
    """Return the writer of a format on an open binary file.

    Args:
        file: where the bytes go; npy also needs it to seek.
        chosen: npy, jsonl or parquet.
        dtype: of the vectors: float32, int8 or uint8.
        dimension: numbers in a vector.
        with_text: whether each row carries its text; npy has no place for it.
    """
    if chosen == "npy":
        return NpyWriter(file, dtype, dimension)
    if chosen == "jsonl":
        return JsonlWriter(file, with_text=with_text)
    return ParquetWriter(file, dtype, dimension, with_text=with_text)


class NpyWriter:
    """A .npy file (format version 1.0) whose header is written again when the rows are counted."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], dimension: int) -> None:
        """Reserve the header's place."""
        self._file = file
        self._dtype = dtype.newbyteorder("<")
        self._dimension = dimension
        self._num_rows = 0
        file.write(self._header())

    def _header(self) -> bytes:
        fields = (
            f"{{'descr': '{self._dtype.str}', 'fortran_order': False, "
            f"'shape': ({self._num_rows}, {self._dimension}), }}"
        )
        start = b"\x93NUMPY\x01\x00" + (_NPY_HEADER_BYTES - 10).to_bytes(2, "little")
        return start + fields.encode("ascii").ljust(_NPY_HEADER_BYTES - 11) + b"\n"

    def write(self, vectors: NDArray[np.generic], texts: Sequence[str]) -> None:
        """Append the vectors' bytes."""
        self._file.write(vectors.astype(self._dtype, order="C", copy=False).tobytes())
        self._num_rows += vectors.shape[0]

    def finish(self) -> None:
        """Write the header again, now with the number of rows."""
        self._file.seek(0)
        self._file.write(self._header())

    def close(self) -> None:
        """Nothing is held."""


class JsonlWriter:
    """One JSON object a line."""

    def __init__(self, file: BinaryIO, *, with_text: bool) -> None:
        """Begin at index 0."""
        self._file = file
        self._with_text = with_text
        self._num_rows = 0

    def write(self, vectors: NDArray[np.generic], texts: Sequence[str]) -> None:
        """Append a line for each vector."""
        number = "%.9g" if vectors.dtype.kind == "f" else "%d"
        row_format = ", ".join([number] * vectors.shape[1])
        for i, vector in enumerate(vectors.tolist()):
            shown = ""
            if self._with_text:
                shown = f'"text": {json.dumps(texts[i], ensure_ascii=False)}, '
            row = row_format % tuple(vector)
            line = f'{{"index": {self._num_rows}, {shown}"embedding": [{row}]}}\n'
            self._file.write(line.encode("utf-8"))
            self._num_rows += 1

    def finish(self) -> None:
        """Hand the last lines to whoever reads them."""
        self._file.flush()

    def close(self) -> None:
        """Nothing is held."""


class ParquetWriter:
    """Row groups of a Parquet file."""

    def __init__(
        self, file: BinaryIO, dtype: np.dtype[Any], dimension: int, *, with_text: bool
    ) -> None:
        """Write the schema."""
        self._pa, pq = pyarrow()
        self._dimension = dimension
        self._with_text = with_text
        self._num_rows = 0
        values = self._pa.list_(self._pa.from_numpy_dtype(dtype), dimension)
        fields = [("index", self._pa.int64()), ("text", self._pa.string()), ("embedding", values)]
        self._schema = self._pa.schema([f for f in fields if f[0] != "text" or with_text])
        self._writer = pq.ParquetWriter(file, self._schema)

    def write(self, vectors: NDArray[np.generic], texts: Sequence[str]) -> None:
        """Append a row group."""
        pa = self._pa
        num_rows = vectors.shape[0]
        columns = [pa.array(range(self._num_rows, self._num_rows + num_rows), pa.int64())]
        if self._with_text:
            columns.append(pa.array(texts, pa.string()))
        flat = pa.array(vectors.reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, self._dimension))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._num_rows += num_rows

    def finish(self) -> None:
        """Write the footer."""
        self._writer.close()

    def close(self) -> None:
        """End pyarrow's writer while its file is still open; after `finish` there is none."""
        if self._writer.is_open:
            self._writer.close()
