"""One run: correctness first, then rounds that interleave the contenders, workload by workload.

A run is a list of stages. What a stage finds is written to a file as soon as it is complete, so an
interrupted run continues with the stage that it was in. Every stage has a share of the run's time;
one that cannot finish its rounds within it keeps those that it has, and says so by their number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.cost_stages import footprint, neighbour, text_scaling, thread_scaling
from benchmarks.crew import BATCH_TEXTS, Crew, Settings
from benchmarks.driver import WorkerProblem
from benchmarks.environments import Environments
from benchmarks.speed_stages import (
    REQUESTS,
    batch_workload,
    correctness,
    requests,
    single,
    throughput,
)

SHARES = {
    "correctness": 6.0,
    "mixed": 24.0,
    "short": 9.0,
    "request-32": 5.0,
    "request-96": 7.0,
    "single": 6.0,
    "footprint": 8.0,
    "threads": 5.0,
    "texts": 10.0,
    "neighbour": 6.0,
    "long": 34.0,
}
"""Stage, in order -> share of the time. Long texts take longest, and get what the others leave."""


class Run(Crew):
    """The contenders at work, stage by stage, and what was found so far."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        model: Path,
        environments: Environments,
        settings: Settings,
        *,
        baseline: str,
        state: Path,
        identity: dict[str, Any],
        say: Callable[[str], None],
        ceiling_now: Callable[[str], float | None],
    ) -> None:
        """Continue the run in the state file where it is the same run, else begin one.

        Args:
            contenders: all that are wanted; those that fail are left out with their reason.
            model: folder.
            environments: where the contenders run.
            settings: how long and how much.
            baseline: key of the contender that ratios and cosines refer to.
            state: file of the finished stages.
            identity: what makes two runs the same run.
            say: receives a line of progress.
            ceiling_now: operations a second that the cores reach in a number format at the moment.
        """
        super().__init__(
            contenders,
            model,
            environments,
            settings,
            baseline=baseline,
            log_folder=state.parent / "logs",
            say=say,
            ceiling_now=ceiling_now,
        )
        self._state = state
        self._identity = identity
        self.stages: dict[str, Any] = {}
        self._spent_s = 0.0
        self._begin = time.monotonic()
        self._resume()

    def run(self) -> dict[str, Any]:
        """Carry out every stage that is not in the state file; return all of them by name."""
        self._begin = time.monotonic() - self._spent_s
        deadline = self._begin + 60 * self.settings.minutes
        try:
            remaining = [stage for stage in SHARES if stage not in self.stages]
            if remaining:
                self.start_all()
                # Installing and converting, where a resumed run needed it, costs no run time.
                self._begin = time.monotonic() - self._spent_s
                deadline = self._begin + 60 * self.settings.minutes
                self.warm_up()
            while remaining:
                found: Any
                stage, left = remaining[0], deadline - time.monotonic()
                share = SHARES[stage] / sum(SHARES[name] for name in remaining)
                if left <= 0 and stage != "correctness":
                    found = {"skipped": "the run's time was used up"}
                else:
                    self.say(f"{stage}: up to {max(0.0, left * share):.0f} s")
                    try:
                        found = self._stage(stage, max(0.0, left * share))
                    except WorkerProblem as problem:
                        if stage == "correctness":
                            raise
                        found = {"skipped": str(problem)}
                self.stages[stage] = found
                remaining.pop(0)
                self._save()
        finally:
            self.close()
        return self.stages

    def _stage(self, stage: str, share_s: float) -> Any:
        if stage == "correctness":
            return correctness(self)
        if stage in ("mixed", "short", "long"):
            return throughput(self, batch_workload(self, stage, share_s), BATCH_TEXTS, share_s)
        if stage in REQUESTS:
            return throughput(self, requests(self, stage, share_s), REQUESTS[stage], share_s)
        by_name = {
            "single": single,
            "footprint": footprint,
            "threads": thread_scaling,
            "texts": text_scaling,
            "neighbour": neighbour,
        }
        return by_name[stage](self, share_s)

    def _resume(self) -> None:
        try:
            saved = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if saved.get("identity") != json.loads(json.dumps(self._identity)):
            return
        self.stages, self.workloads = saved["stages"], saved["workloads"]
        self.problems = saved["problems"]
        self._spent_s = saved["spent_s"]
        self.say(f"continuing after {', '.join(self.stages)}")

    def _save(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "identity": self._identity,
            "stages": self.stages,
            "workloads": self.workloads,
            "problems": self.problems,
            "spent_s": time.monotonic() - self._begin,
        }
        scratch = self._state.with_suffix(".unfinished")
        scratch.write_text(json.dumps(saved), encoding="utf-8")
        scratch.replace(self._state)
