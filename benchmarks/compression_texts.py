"""Write English sentences to calibrate with, one a line.

    apt-get install wordnet-base
    python benchmarks/compression_texts.py minibert/data/wordnet.txt --wordnet /usr/share/wordnet

writes the set that is bundled: example sentences and definitions of WordNet 3.0 (Princeton
University, under a free licence: minibert/data/wordnet_license.txt). The others are not part of
this repository:

    pip download --no-deps gensim==4.4.0
    python benchmarks/compression_texts.py build/texts.txt --gensim gensim-4.4.0-*.whl --count 700

The wheel of gensim carries, as test data, the background corpus of Lee, Pincombe and Welsh (2005):
300 news items from 2001. Without a wheel the texts are paragraphs of the standard library's
docstrings: technical prose, far from what people search for, and a worse calibration set.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sysconfig
import zipfile
from pathlib import Path


def paragraphs() -> list[str]:
    """Paragraphs of 8 to 120 words that look like prose, in a fixed order, each once."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for block in (ast.get_docstring(node) or "").split("\n\n"):
                    text = " ".join(block.split())
                    words = text.split()
                    prose = re.fullmatch(r"[A-Z][\w ,;:'\"()./-]+[.!?]", text)
                    if prose and 8 <= len(words) <= 120:
                        found[text] = None
    return list(found)


def news(wheel: Path) -> list[str]:
    """Sentences of 6 to 80 words of the Lee background corpus, each once."""
    with zipfile.ZipFile(wheel) as archive:
        corpus = archive.read("gensim/test/test_data/lee_background.cor").decode("utf-8", "replace")
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", corpus)
    cleaned = (" ".join(sentence.split()) for sentence in sentences)
    return list(dict.fromkeys(text for text in cleaned if 6 <= len(text.split()) <= 80))


_LABELS = re.compile(
    r"slur|offensive|obscen|vulgar|disparag|derogat|contempt|taboo|sexual|genital|prostitut|rape|"
    r"drug|kill|murder|suicid|nazi|negro|nigger|whore|bitch|fuck|shit|penis|vagina",
    re.IGNORECASE,
)


_EXAMPLES = (1, 1, 2, 2, 3, 12)  # of a text: mostly short, some of a hundred tokens


def wordnet(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Texts of one to twelve example sentences, and for every two of them a definition.

    Entries that may offend are left out as a whole.

    Args:
        folder: has the files data.noun, data.verb, data.adj and data.adv.
        count: texts, at most.
        seed: of the choice.
    """
    examples: dict[str, None] = {}
    definitions: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            gloss = line.partition(" | ")[2].strip()
            if not gloss or _LABELS.search(line):
                continue
            examples.update((q.strip(), None) for q in re.findall(r'"([^"]+)"', gloss))
            definition = re.sub(r';?\s*"[^"]*"', "", gloss).strip(" ;")
            definitions[definition] = None
    draw = random.Random(seed)
    pools = []
    for pool, shortest in ((examples, 3), (definitions, 4)):
        usable = [text for text in pool if len(text.split()) >= shortest and text.isascii()]
        draw.shuffle(usable)
        pools.append(iter(usable))
    texts: list[str] = []
    while len(texts) < count:
        if len(texts) % 3 == 2:
            chosen = [next(pools[1], "")]
        else:
            chosen = [_sentence(next(pools[0], "")) for _ in range(draw.choice(_EXAMPLES))]
        if not all(chosen):
            break
        texts.append(" ".join(chosen))
    return texts


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".?!" or not text else ".")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write English sentences, one a line.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--gensim", type=Path, help="a wheel of gensim")
    parser.add_argument("--wordnet", type=Path, help="the folder of WordNet's data files")
    arguments = parser.parse_args()
    if arguments.wordnet is not None:
        texts = wordnet(arguments.wordnet, arguments.count)
    else:
        texts = paragraphs() if arguments.gensim is None else news(arguments.gensim)
    step = max(1, len(texts) // arguments.count)
    chosen = texts[::step][: arguments.count]
    arguments.output.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"{len(chosen)} of {len(texts)} texts written to {arguments.output}")


if __name__ == "__main__":
    main()
