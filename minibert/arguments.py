"""Checks of what callers hand over: each refusal names the argument and what it accepts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from minibert import log
from minibert.errors import InputError
from minibert.precision import check_precision


def as_texts(inputs: Any, sentences: Any = None) -> tuple[list[str], bool]:
    """The texts of a call, and whether it was a single one.

    Args:
        inputs: a str, or any iterable of str.
        sentences: the argument's older name.

    Raises:
        InputError: neither, both, or something else than texts.
    """
    if inputs is None:
        if sentences is None:
            raise InputError("inputs must be a text or several texts, got None")
        log.warn_caller("sentences= is called inputs= now", DeprecationWarning)
        inputs = sentences
    elif sentences is not None:
        raise InputError("inputs and sentences must not both be given: they are one argument")
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()  # a 0-dimensional array is one text
    if isinstance(inputs, str):
        return [inputs], True
    texts = list(iterate(inputs, "a text or several texts"))
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} must be a str, got {type(text).__name__}")
    return [str(text) for text in texts], False


def iterate(inputs: Any, wanted: str) -> Iterator[Any]:
    """Several texts one by one; their order must be the caller's, since rows have no other names.

    Args:
        inputs: what a caller gave.
        wanted: what it must be, for the message.

    Raises:
        InputError: no iterable, or one that is not a sequence of texts.
    """
    if isinstance(inputs, set | frozenset):
        raise InputError(f"inputs must be in an order, got a {type(inputs).__name__}: sort it")
    try:
        if not isinstance(inputs, str | bytes | Mapping):
            return iter(inputs)
    except TypeError:
        pass
    raise InputError(f"inputs must be {wanted}, got one {type(inputs).__name__}")


def check_unicode(name: str, text: str) -> None:
    """Refuse a text that has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} must be valid Unicode, got a lone surrogate at character {error.start}"
        ) from None


def check_output(output_value: object, precision: str) -> None:
    """Refuse an unknown output_value or precision, or two that do not go together."""
    if output_value not in ("sentence_embedding", "token_embeddings", None):
        raise InputError(
            "output_value must be sentence_embedding, token_embeddings or None, "
            f"got {output_value!r}"
        )
    check_precision(precision)
    if output_value != "sentence_embedding" and precision != "float32":
        raise InputError(
            f"precision must be float32 with output_value = {output_value!r}, got {precision!r}"
        )


def check_conversion(convert_to_numpy: object, convert_to_tensor: object) -> None:
    """Refuse to give anything but NumPy arrays."""
    if convert_to_numpy is not True or convert_to_tensor is not False:
        raise InputError(
            "convert_to_numpy must be True and convert_to_tensor False: results are NumPy arrays, "
            f"got {convert_to_numpy!r} and {convert_to_tensor!r}"
        )


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> None:
    """Refuse what is neither None nor a whole number of at least 1."""
    if value is not None and (not is_integer(value) or value < 1):
        raise InputError(f"{name} must be at least 1, got {value!r}")


def check_folder(name: str, value: object) -> Path | None:
    """A path to a folder that is there or can be made, or None.

    Raises:
        InputError: naming the argument.
    """
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{name} must be a path or None, got {value!r}")
    path = Path(os.fsdecode(value))
    if path.exists() and not path.is_dir():
        raise InputError(f"{name} must be a folder, got the file '{path}'")
    return path


def check_prompts(prompts: object) -> None:
    """Refuse what is neither None nor a mapping from names to texts."""
    if prompts is not None and not (
        isinstance(prompts, Mapping)
        and all(isinstance(part, str) for item in prompts.items() for part in item)
    ):
        raise InputError(f"prompts must map names to texts, got {prompts!r}")


def check_truncation(truncation: object, truncation_side: object) -> None:
    """Refuse unknown ways of cutting long texts."""
    if truncation not in ("warn", "error", "silent"):
        raise InputError(f"truncation must be warn, error or silent, got {truncation!r}")
    if truncation_side not in ("right", "left", None):
        raise InputError(f"truncation_side must be right or left, got {truncation_side!r}")


def check_names(name: str, names: object) -> None:
    """Refuse one str where several names are meant."""
    if isinstance(names, str):
        raise InputError(f"{name} must be several names, got one str {names!r}")


def check_truncate_dim(truncate_dim: Any, dimension: int) -> None:
    """Refuse what is neither None nor a number of leading dimensions."""
    if truncate_dim is not None and (
        not is_integer(truncate_dim) or not 1 <= truncate_dim <= dimension
    ):
        raise InputError(f"truncate_dim must be 1 to {dimension}, got {truncate_dim!r}")
