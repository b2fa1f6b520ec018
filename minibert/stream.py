"""Chunk by chunk through texts of any number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

from numpy.typing import NDArray

from minibert.arguments import check_count, iterate
from minibert.errors import InputError

StreamPrecision = Literal["float32", "binary", "ubinary"]


def in_chunks(inputs: Any, chunk_size: Any, precision: str) -> Iterator[list[Any]]:
    """Check the arguments of a stream, and take its texts apart.

    Args:
        inputs: any iterable of texts.
        chunk_size: texts of a chunk, at most.
        precision: of the embeddings.

    Returns:
        An iterator over lists that are not empty.

    Raises:
        InputError: at once, an argument that cannot be taken.
    """
    if chunk_size is None:
        raise InputError("chunk_size must be at least 1, got None")
    check_count("chunk_size", chunk_size)
    if precision in ("int8", "uint8"):
        raise InputError(
            "precision must be float32, binary or ubinary in a stream: int8 ranges would "
            "differ between chunks; encode float32 and call quantize_embeddings with ranges"
        )
    texts = iterate(inputs, "an iterable of texts")
    return iter(lambda: list(islice(texts, chunk_size)), [])


def encoded(
    encode: Callable[[list[Any]], NDArray[Any]], chunks: Iterator[list[Any]]
) -> Iterator[NDArray[Any]]:
    """Encode chunk after chunk; an error says where in the stream its chunk begins."""
    first = 0
    for chunk in chunks:
        try:
            rows = encode(chunk)
        except InputError as error:
            if first == 0:
                raise
            message = f"counted from text {first} of the stream: {error}"
            raise type(error)(message) from None
        yield rows
        first += len(chunk)
