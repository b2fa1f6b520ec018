"""Texts to measure with, built by script from the documentation that ships with Python.

The words are real prose: `pydoc_data.topics` and the docstrings of the standard library, read from
its source. Lengths follow a plan, counted in tokens of the model that is measured, so that the same
seed gives texts of the same lengths everywhere; the words depend on the Python version, which is
why every workload carries a digest.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Tokens of each text, special tokens included and uncut."""

MIXED_MEDIAN, MIXED_MEAN, MIXED_LONGEST = 48, 62, 256
SHORT_RANGE = (5, 20)
LONG_RANGE = (218, 256)
SINGLE_RANGE = (17, 21)

_MODULES = (
    "argparse ast asyncio/events base64 calendar collections/__init__ configparser contextlib copy "
    "csv ctypes/__init__ datetime decimal difflib dis doctest email/message enum fractions ftplib "
    "functools gettext heapq html/parser http/client imaplib inspect json/__init__ locale "
    "logging/__init__ mailbox numbers optparse os pathlib pdb pickle pickletools platform plistlib "
    "queue random re shelve shutil smtplib socket socketserver ssl statistics string subprocess "
    "tarfile telnetlib tempfile textwrap threading timeit tokenize trace traceback turtle typing "
    "unittest/case urllib/parse urllib/request uuid warnings weakref xml/sax/handler zipfile"
).split()


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts with a name.

    Attributes:
        seqlens: tokens of each text, special tokens included, after cutting to `max_length`.
    """

    name: str
    texts: tuple[str, ...]
    seqlens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts, without padding."""
        return sum(self.seqlens)

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the texts."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16]

    def padding(self, batch_size: int = 32) -> float:
        """Padded over real tokens of batches of texts sorted by length, as peers form them."""
        ordered = sorted(self.seqlens, reverse=True)
        starts = range(0, len(ordered), batch_size)
        padded = sum(ordered[i] * len(ordered[i : i + batch_size]) for i in starts)
        return padded / max(1, self.num_tokens)


class TextSource:
    """Cuts texts of wanted lengths out of one long run of words."""

    def __init__(self, count_tokens: CountTokens, *, max_length: int, seed: int = 0) -> None:
        """Read the corpus and count its tokens, word by word.

        Args:
            count_tokens: of the model that is measured.
            max_length: texts are cut there.
            seed: decides lengths and places.
        """
        self._count = count_tokens
        self._max_length = max_length
        self._seed = seed
        sentences = corpus()
        self._words = [word for sentence in sentences for word in sentence.split()]
        lengths = [len(sentence.split()) for sentence in sentences]
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._special = int(count_tokens([""])[0])
        per_word = np.asarray(count_tokens(self._words), np.int64) - self._special
        self._cumulative = np.concatenate([[0], np.cumsum(per_word)])

    def short(self, count: int) -> Workload:
        """Sentences of 5 to 20 tokens."""
        return self._between("short", count, SHORT_RANGE, stream=1)

    def long(self, count: int) -> Workload:
        """Texts of 218 to 256 tokens."""
        return self._between("long", count, LONG_RANGE, stream=2)

    def single(self, count: int) -> Workload:
        """Texts of about 19 tokens, to be encoded one at a time."""
        return self._between("single", count, SINGLE_RANGE, stream=3)

    def mixed(self, count: int, *, name: str = "mixed", stream: int = 4) -> Workload:
        """Log-normal lengths: median 48, mean about 62, at most 256 tokens."""
        sigma = math.sqrt(2 * math.log(MIXED_MEAN / MIXED_MEDIAN))
        drawn = self._rng(stream).lognormal(math.log(MIXED_MEDIAN), sigma, count)
        return self._cut(name, np.clip(np.rint(drawn), 5, MIXED_LONGEST).astype(int), stream)

    def _between(self, name: str, count: int, bounds: tuple[int, int], stream: int) -> Workload:
        targets = self._rng(stream).integers(bounds[0], bounds[1] + 1, count)
        return self._cut(name, targets, stream)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream])

    def _cut(self, name: str, targets: NDArray[np.int_], stream: int) -> Workload:
        """One text for each target: whole words from the start of a sentence, at most that long."""
        rng = self._rng(stream + 100)
        room = len(self._words) - 2 * MIXED_LONGEST
        starts = rng.choice(self._starts[self._starts < room], len(targets))
        texts = []
        for start, target in zip(starts, targets, strict=True):
            wanted = self._cumulative[start] + max(1, int(target) - self._special)
            stop = int(np.searchsorted(self._cumulative, wanted, side="right")) - 1
            texts.append(" ".join(self._words[start : max(stop, start + 1)]))
        seqlens = tuple(min(int(n), self._max_length) for n in self._count(texts))
        return Workload(name, tuple(texts), seqlens)


@cache
def corpus() -> tuple[str, ...]:
    """Sentences of the topics and of the standard library's docstrings, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    passages = [topics[name] for name in sorted(topics)]
    for module in _MODULES:
        path = library / f"{module}.py"
        if path.is_file():
            passages += docstrings(path.read_text(encoding="utf-8"))
    return tuple(sentence for passage in passages for sentence in sentences_of(passage))


def docstrings(source: str) -> list[str]:
    """Docstrings of a module, its classes and functions, in the order of the source."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def sentences_of(passage: str) -> list[str]:
    """Prose sentences of a passage; tables, grammars and code, mostly symbols, are left out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", passage):
        if ">>>" in paragraph or "::=" in paragraph:
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            letters = sum(character.isalpha() or character == " " for character in sentence)
            if len(sentence.split()) >= 4 and letters >= 0.85 * len(sentence):
                found.append(sentence)
    return found
