"""Write English prose to calibrate with, from what every Python brings along.

    python benchmarks/compression_texts.py build/texts.txt --count 2000

The texts are paragraphs of the standard library's docstrings, read in place: nothing of them is
part of this repository. They are technical, unlike the reporting texts, and there are thousands.
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
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


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    texts = paragraphs()
    step = max(1, len(texts) // arguments.count)
    chosen = texts[::step][: arguments.count]
    arguments.output.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"{len(chosen)} of {len(texts)} paragraphs written to {arguments.output}")


if __name__ == "__main__":
    main()
