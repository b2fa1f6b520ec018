"""Calibration texts and reporting texts: always different ones.

Without texts of the user's, the bundled set calibrates and the demonstration's texts report.
Of the user's, every fourth distinct text is held back for the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minibert.data import calibration_texts, demo_questions, demo_texts, many_calibration_texts
from minibert.errors import InputError

FEWEST_TEXTS = 32
_HELD = 4  # every fourth text


@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts of one run, and where they came from."""

    calibration: tuple[str, ...]
    reporting: tuple[str, ...]
    origin: str


def split_texts(texts: Sequence[str] | None, *, many: bool = False) -> TextSet:
    """Divide a user's texts, or take the bundled ones where there are none.

    Args:
        texts: the user's, or None.
        many: whether to take the thousands of bundled texts that fitting matrices needs, instead
            of the hundred and fifty that are enough for ranges and moments.

    Raises:
        InputError: fewer than 32 distinct texts that are not blank.
    """
    if texts is None:
        return TextSet(
            tuple(many_calibration_texts() if many else calibration_texts()),
            (*demo_texts(), *demo_questions()),
            "the bundled sets",
        )
    distinct = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if len(distinct) < FEWEST_TEXTS:
        raise InputError(
            f"texts must be at least {FEWEST_TEXTS} distinct ones that are not blank, "
            f"got {len(distinct)}: three quarters calibrate, one quarter reports"
        )
    reporting = tuple(distinct[_HELD - 1 :: _HELD])
    held = set(reporting)
    calibration = tuple(text for text in distinct if text not in held)
    return TextSet(calibration, reporting, f"{len(distinct)} texts given")
