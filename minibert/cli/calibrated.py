"""int8 and uint8 vectors of a stream: the ranges are those of all vectors, so it takes two passes.

The result is that of quantizing one array of all vectors, which is never in memory as a whole.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from minibert.cli.writers import VectorWriter
from minibert.errors import InputError
from minibert.precision import Precision, quantize_embeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 4096


class CalibratedWriter:
    """A writer that spools float32 vectors to the disk and hands them on quantized at the end."""

    def __init__(
        self,
        writer: VectorWriter,
        precision: Precision,
        dimension: int,
        folder: Path | None,
        *,
        with_text: bool,
    ) -> None:
        """Open the spool.

        Args:
            writer: receives the quantized vectors.
            precision: int8 or uint8.
            dimension: numbers in a vector.
            folder: where the spool lies, nameless; None is the system's temporary folder.
            with_text: whether the writer wants the texts.
        """
        self._writer = writer
        self._precision = precision
        self._with_text = with_text
        self._low = np.full(dimension, np.inf, np.float32)
        self._high = np.full(dimension, -np.inf, np.float32)
        self._num_rows = 0
        self._stack = ExitStack()
        self._vectors = cast(
            BinaryIO, self._stack.enter_context(tempfile.TemporaryFile(dir=folder))
        )
        self._texts = cast(BinaryIO, self._stack.enter_context(tempfile.TemporaryFile(dir=folder)))

    def write(self, vectors: NDArray[np.generic], texts: Sequence[str]) -> None:
        """Spool (n, dimension) float32 vectors and widen the ranges."""
        if not len(vectors):
            return
        chunk = vectors.astype(np.float32, copy=False)
        np.minimum(self._low, chunk.min(axis=0), out=self._low)
        np.maximum(self._high, chunk.max(axis=0), out=self._high)
        self._vectors.write(chunk.tobytes())
        for text in texts if self._with_text else ():
            self._texts.write(json.dumps(text).encode("ascii") + b"\n")
        self._num_rows += len(chunk)

    def finish(self) -> None:
        """Quantize what was spooled, write it, and finish the writer.

        Raises:
            InputError: for a single text, whose ranges would be empty.
        """
        if self._num_rows == 1:
            raise InputError(
                f"--precision {self._precision} must have two texts or more, whose vectors span "
                "the range of each number, got 1"
            )
        self._vectors.seek(0)
        self._texts.seek(0)
        ranges = np.vstack((self._low, self._high))
        dimension = self._low.size
        while block := self._vectors.read(_ROWS * dimension * 4):
            chunk = np.frombuffer(block, np.float32).reshape(-1, dimension)
            texts = [json.loads(line) for line in islice(self._texts, len(chunk))]
            quantized = quantize_embeddings(chunk, self._precision, ranges=ranges)
            self._writer.write(quantized, texts)
        self._writer.finish()

    def close(self) -> None:
        """Remove the spool and close the writer."""
        self._stack.close()
        self._writer.close()
