"""Results of one run: checks that hold or do not, timings, and the two files made of them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Check:
    """One thing that must be so."""

    stage: str
    name: str
    ok: bool
    detail: str


@dataclass(slots=True)
class Timing:
    """One measured piece of work.

    Attributes:
        stage: which table it belongs to.
        work: what was done, sizes included.
        contender: who did it, with its version.
        time_us: median over the rounds.
        spread_us: between the quartiles.
        floor_us: no implementation on this device can be quicker, None where there is no floor.
        note: what the floor or the number means.
    """

    stage: str
    work: str
    contender: str
    time_us: float
    spread_us: float
    floor_us: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """Floor over time: 1 is the best that can be."""
        return None if self.floor_us is None else self.floor_us / self.time_us


@dataclass(slots=True)
class Report:
    """All of one run."""

    environment: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check held, and there were some."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, stage: str, name: str, ok: bool, detail: str = "") -> None:
        """Record a check, and say it."""
        self.checks.append(Check(stage, name, bool(ok), detail))
        print(f"  {'ok  ' if ok else 'FAIL'} {name}  {detail}", flush=True)

    def table(self) -> str:
        """The report for people."""
        lines = ["# GPU report", ""]
        lines += [f"- {name}: {value}" for name, value in self.environment.items()]
        failed = [check for check in self.checks if not check.ok]
        lines += ["", f"{len(self.checks)} checks, {len(failed)} failed.", ""]
        lines += [f"- FAILED {c.stage}: {c.name}: {c.detail}" for c in failed]
        lines += [f"- skipped {stage}: {why}" for stage, why in self.skipped.items()]
        for stage in dict.fromkeys(timing.stage for timing in self.timings):
            lines += ["", f"## {stage}", ""]
            lines += ["| work | contender | us | spread | floor us | of floor | note |"]
            lines += ["|---|---|---|---|---|---|---|"]
            for t in (t for t in self.timings if t.stage == stage):
                floor = "" if t.floor_us is None else f"{t.floor_us:.1f}"
                fraction = "" if t.fraction is None else f"{t.fraction:.2f}"
                lines.append(
                    f"| {t.work} | {t.contender} | {t.time_us:.1f} | {t.spread_us:.1f} "
                    f"| {floor} | {fraction} | {t.note} |"
                )
        lines += ["", "## Checks", "", "| stage | check | detail |", "|---|---|---|"]
        lines += [f"| {c.stage} | {c.name} | {c.detail} |" for c in self.checks]
        lines += ["", "Seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in self.seconds.items())]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write JSON and table; the names carry date and device."""
        folder.mkdir(parents=True, exist_ok=True)
        device = "".join(c if c.isalnum() else "-" for c in str(self.environment["device"]))
        stem = f"{time.strftime('%Y-%m-%d')}-{device.strip('-').lower()}"
        content = {**asdict(self), "ok": self.ok}
        for row, timing in zip(content["timings"], self.timings, strict=True):
            row["fraction"] = timing.fraction
        paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
        paths[0].write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        paths[1].write_text(self.table(), encoding="utf-8")
        return paths
