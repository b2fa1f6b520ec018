"""What a change gained and what it cost, as a table of two columns."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from minibert.compress.run import PreparedRun, TextRun, encoder_flops, interleaved_seconds
from minibert.fidelity import Fidelity, compare
from minibert.loading import LoadedModel, load_model


@dataclass(frozen=True, slots=True)
class Report:
    """A changed model beside its original, on texts that calibrated neither.

    Attributes:
        num_tokens: of the reporting texts.
        original_bytes: size of the weight files; `changed_bytes` likewise.
        original_seconds: median time of one pass over the reporting texts, measured in turns.
        flop_ratio: the original's operations over the changed model's; 1 for int8.
        fidelity: against the original in float32.
    """

    num_tokens: int
    original_bytes: int
    changed_bytes: int
    original_seconds: float
    changed_seconds: float
    flop_ratio: float
    fidelity: Fidelity

    @property
    def speedup(self) -> float:
        """Measured, on this machine: the original's time over the changed model's."""
        return self.original_seconds / self.changed_seconds

    def table(self) -> str:
        """The report as text, one measure a line."""
        kept = self.fidelity
        size = self.changed_bytes / self.original_bytes
        rows = [
            ("", "original", "new", ""),
            (
                "weight files, MB",
                f"{self.original_bytes / 1e6:.1f}",
                f"{self.changed_bytes / 1e6:.1f}",
                f"{size:.3f}x",
            ),
            (
                "tokens/s, here",
                f"{self.num_tokens / self.original_seconds:,.0f}",
                f"{self.num_tokens / self.changed_seconds:,.0f}",
                f"{self.speedup:.2f}x",
            ),
            ("operations", "1", f"1/{self.flop_ratio:.2f}", ""),
            ("mean cosine", "1", f"{kept.mean_cosine:.5f}", f"worst {kept.min_cosine:.5f}"),
            ("Spearman of pairs", "1", f"{kept.spearman:.4f}", ""),
            ("top-10 overlap", "1", f"{kept.top10_overlap:.3f}", f"{kept.num_texts} texts"),
        ]
        lines = [f"{a:<20}{b:>12}{c:>12}   {d}".rstrip() for a, b, c, d in rows]
        return "\n".join(lines)


def weight_bytes(loaded: LoadedModel) -> int:
    """Size of a model's weight files."""
    return sum(os.stat(path).st_size for path in loaded.weights.files)


def report(
    original: LoadedModel,
    folder: Path,
    texts: tuple[str, ...],
    rounds: int = 5,
    *,
    device: str = "auto",
) -> Report:
    """Load what was written and measure it beside the original.

    Args:
        original: runs in float32.
        folder: the changed model; runs as its files say.
        texts: for the report.
        rounds: timings of each, taken in turns.
        device: runs both.
    """
    changed = load_model(folder)
    first_texts = TextRun(original, texts, device=device)
    second_texts = TextRun(changed, texts, device=device)
    with PreparedRun(first_texts) as first, PreparedRun(second_texts, dtype=None) as second:
        fidelity = compare(first.embeddings(), second.embeddings())
        original_seconds, changed_seconds = interleaved_seconds([first, second], rounds)
        return Report(
            num_tokens=first_texts.num_tokens,
            original_bytes=weight_bytes(original),
            changed_bytes=weight_bytes(changed),
            original_seconds=original_seconds,
            changed_seconds=changed_seconds,
            flop_ratio=encoder_flops(first.weights, first_texts)
            / encoder_flops(second.weights, second_texts),
            fidelity=fidelity,
        )
