"""Pieces of a Markdown page: sections, tables, and what a script rewrites between markers.

The markers are `<!-- NAME:start -->` and `<!-- NAME:end -->`, each on a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def rewrite(text: str, body: str, name: str = "benchmarks") -> str:
    """A text with what is between its markers replaced.

    Args:
        text: of a Markdown file.
        body: what goes between the markers.
        name: of the markers.

    Raises:
        ValueError: the text does not have exactly one pair of markers, in order.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ValueError(f"the text must have one {start} and, after it, one {end}")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{body.strip()}\n{end}{after}"


def section(title: str, body: str) -> str:
    """A third-level heading and its body; empty where there is no body."""
    return f"### {title}\n\n{body}" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    listed = [list(row) for row in rows]
    if not listed:
        return ""
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *listed]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
