"""Chunk by chunk through texts of any number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from minibert.arguments import check_count
from minibert.errors import InputError


def in_chunks(
    encode: Callable[..., NDArray[Any]],
    inputs: Iterable[str],
    chunk_size: int | None,
    options: Mapping[str, Any],
) -> Iterator[NDArray[Any]]:
    """See `Engine.encode_stream`.

    Args:
        encode: `Engine.encode`.
        inputs: texts.
        chunk_size: texts of a chunk, at most.
        options: keywords of `encode`.
    """
    if chunk_size is None:
        raise InputError("chunk_size must be at least 1, got None")
    check_count("chunk_size", chunk_size)
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable):
        raise InputError(f"inputs must be an iterable of texts, got one {type(inputs).__name__}")
    if options.get("precision") in ("int8", "uint8"):
        raise InputError(
            "precision must be float32, binary or ubinary in a stream: int8 ranges would "
            "differ between chunks; encode float32 and call quantize_embeddings with ranges"
        )
    iterator = iter(inputs)
    first = 0
    while chunk := list(islice(iterator, chunk_size)):
        try:
            rows = encode(chunk, **options)
        except InputError as error:
            if first == 0:
                raise
            message = f"counted from text {first} of the stream: {error}"
            raise type(error)(message) from None
        yield rows
        first += len(chunk)
