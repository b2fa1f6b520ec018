"""The contenders' workers: started, warmed up, asked in turn, and left out where they fail."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import ceilings
from benchmarks.contenders import Contender
from benchmarks.driver import Worker, WorkerProblem
from benchmarks.environments import EnvironmentProblem, Environments, Graphs, tidy
from benchmarks.models import Shape, shape_of, token_counter
from benchmarks.rounds import Round, clean_count, rotated
from benchmarks.workloads import TextSource, Workload

BATCH_TEXTS = 1 << 30  # one call with all texts
LONGEST_REQUEST_S = 240.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how much.

    Attributes:
        rounds: wanted of every workload, undisturbed.
        minutes: bound of the whole run, without installing and converting.
        threads: of every contender.
        most_texts: of the largest workload.
        most_calls: requests of 32 or 96 texts in a round.
        most_singles: texts encoded one by one in a round.
        scaling_counts: numbers of texts at which the cost of a token is measured.
        settle_s: pause before each sample, in which the last contender's threads go to sleep.
        seed: of the texts.
    """

    rounds: int = 5
    minutes: float = 20.0
    threads: int = 2
    most_texts: int = 1000
    most_calls: int = 8
    most_singles: int = 400
    scaling_counts: tuple[int, ...] = (100, 1000, 5000, 20000)
    settle_s: float = 0.25
    seed: int = 0


class Crew:
    """The contenders, their workers and the texts that they are given.

    Attributes:
        contenders: all that are wanted, by key, in the order of the tables.
        workers: of those that run, by key.
        problems: why the others do not, by key.
        speeds: tokens a second of the warm-up, by which workloads are sized.
        workloads: what each workload was, for the results.
        scratch: folder of texts and vectors.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        model: Path,
        environments: Environments,
        settings: Settings,
        *,
        baseline: str,
        log_folder: Path,
        say: Callable[[str], None],
        ceiling_now: Callable[[str], float | None],
    ) -> None:
        """Take the contenders; `start_all` starts them.

        Args:
            contenders: all that are wanted; those that fail are left out with their reason.
            model: folder.
            environments: where the contenders run; `python(name)` is asked of it.
            settings: how long and how much.
            baseline: key of the contender that ratios and cosines refer to.
            log_folder: of what the workers print.
            say: receives a line of progress.
            ceiling_now: operations a second that the cores reach in a number format at the moment.
        """
        self.contenders = {contender.key: contender for contender in contenders}
        self.model = model
        self.shape: Shape = shape_of(model)
        self.settings = settings
        self.baseline = baseline
        self.environments = environments
        self.say = say
        self._ceiling_now = ceiling_now
        self._log_folder = log_folder
        self._graphs = Graphs(environments, model, lambda: self.source.mixed(300).texts)
        self.workers: dict[str, Worker] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="minibert-bench-")
        self.scratch = Path(self._scratch.name)
        self._files: dict[str, str] = {}
        self.speeds: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.workloads: dict[str, Any] = {}

    @cached_property
    def source(self) -> TextSource:
        """The texts, by the model's own token counts."""
        count = token_counter(self.model)
        return TextSource(count, max_length=self.shape.max_length, seed=self.settings.seed)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()
        self._scratch.cleanup()

    @property
    def running(self) -> list[str]:
        """Keys of the contenders that still run, in the order of the tables."""
        return [key for key in self.contenders if key in self.workers]

    def start_all(self) -> None:
        """Load every contender, the baseline first.

        Raises:
            WorkerProblem: the baseline cannot run.
        """
        for key in [self.baseline, *(key for key in self.contenders if key != self.baseline)]:
            contender = self.contenders.get(key)
            if contender is None or key in self.problems:
                self._check_baseline()
                continue
            if contender.unsuitable is not None:
                self.problems[key] = contender.unsuitable
                self._check_baseline()
                continue
            try:
                self.workers[key] = self.start(contender)
            except (EnvironmentProblem, WorkerProblem) as problem:
                self.fail(key, str(problem))
            self._check_baseline()

    def _check_baseline(self) -> None:
        if self.baseline not in self.workers:
            reason = self.problems.get(self.baseline, "it is not among the contenders")
            self.close()
            raise WorkerProblem(f"the baseline {self.baseline} cannot run: {reason}")

    def start(self, contender: Contender, *, threads: int | None = None) -> Worker:
        """A worker of its own for a contender; the caller closes it."""
        load = {**contender.options, "model": str(self.model)}
        if contender.graph is not None:
            load["graph"] = str(self._graphs.path(contender.graph))
        return Worker(
            self.environments.python(contender.environment),
            contender.module,
            load,
            threads=threads or self.settings.threads,
            log=self._log_folder / f"{contender.key}.log",
        )

    def fail(self, key: str, reason: str) -> None:
        """Leave a contender out from here on."""
        self.say(f"{key} is out: {reason}")
        self.problems[key] = tidy(reason)
        worker = self.workers.pop(key, None)
        if worker is not None:
            worker.close()

    def warm_up(self) -> None:
        """Let every contender compute a little; keep its speed, by which workloads are sized.

        Engines that pad are three times slower on one batch of 32 than on several sorted by length:
        sized by that, workloads were far smaller than the time allowed.
        """
        warm = self.source.mixed(32, name="warm-up", stream=5)
        timed = self.source.mixed(128, name="warm-up", stream=5)
        for key in self.running:
            try:
                self.workers[key].ask(self.request(warm, BATCH_TEXTS))
                seconds = self.workers[key].ask(self.request(timed, BATCH_TEXTS))["seconds"]
                self.workers[key].ask(self.single_request(warm, limit_s=0.05, most=8))
            except WorkerProblem as problem:
                self.fail(key, str(problem))
                continue
            self.speeds[key] = timed.num_tokens / sum(seconds)

    # ---- requests -----------------------------------------------------------------------------
    def _file(self, workload: Workload) -> str:
        if workload.digest not in self._files:
            path = self.scratch / f"{workload.digest}.json"
            path.write_text(json.dumps(workload.texts), encoding="utf-8")
            self._files[workload.digest] = str(path)
        return self._files[workload.digest]

    def request(
        self, workload: Workload, size: int, *, vectors: Path | None = None
    ) -> dict[str, Any]:
        """What a worker is asked: all texts, in calls of `size`, vectors to a file where given."""
        return {
            "do": "encode",
            "texts": self._file(workload),
            "first": 0,
            "count": len(workload.texts),
            "size": size,
            "vectors": None if vectors is None else str(vectors),
        }

    def single_request(self, workload: Workload, *, limit_s: float, most: int) -> dict[str, Any]:
        """What a worker is asked: texts one by one, until the time or the number is reached."""
        texts = self._file(workload)
        return {"do": "single", "texts": texts, "limit_s": limit_s, "most": most}

    def rounds(
        self, request: dict[str, Any], share_s: float, *, with_ceilings: bool
    ) -> list[Round]:
        """Rounds of all contenders until enough are undisturbed, or the time is used up.

        Args:
            request: for every contender.
            share_s: seconds for all rounds.
            with_ceilings: measure before each sample what the cores reach at the moment.
        """
        wanted = self.settings.rounds
        done: list[Round] = []
        end = time.monotonic() + share_s
        while True:
            begin = time.monotonic()
            entry: Round = {}
            for key in rotated(self.running, len(done)):
                time.sleep(self.settings.settle_s)
                ceiling = self._ceiling_now(self.contenders[key].dtype) if with_ceilings else None
                try:
                    sample = self.workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                except WorkerProblem as problem:
                    self.fail(key, str(problem))
                else:
                    entry[key] = replace(sample, ceiling=ceiling)
            done.append(entry)
            clean = min((clean_count(done, key, self.baseline) for key in self.running), default=0)
            now = time.monotonic()
            if clean >= wanted or len(done) >= 2 * wanted or now + (now - begin) > end:
                return done

    def closer_look(self) -> list[str]:
        """The baseline and minibert on its kernels: those whose scaling is measured."""
        chosen = [
            key
            for key in self.running
            if key == self.baseline
            or (self.contenders[key].is_minibert and key != "minibert-numpy")
        ]
        return chosen

    def note(self, workload: Workload, size: int = 32, *, name: str | None = None) -> None:
        """Keep what a workload was, for the results."""
        self.workloads[name or workload.name] = {
            "texts": len(workload.texts),
            "tokens": workload.num_tokens,
            "operations": sum(
                ceilings.operations_per_text(
                    seqlen,
                    hidden=self.shape.hidden_size,
                    layers=self.shape.num_hidden_layers,
                    intermediate=self.shape.intermediate_size,
                )
                for seqlen in workload.seqlens
            ),
            "padding": request_padding(workload, size),
            "digest": workload.digest,
        }


def request_padding(workload: Workload, size: int) -> float:
    """Padded over real tokens in batches of 32 sorted texts, each request by itself."""
    size = min(size, len(workload.texts))
    pieces = [
        Workload("", workload.texts[i : i + size], workload.seqlens[i : i + size])
        for i in range(0, len(workload.texts), size)
    ]
    padded = sum(piece.padding() * piece.num_tokens for piece in pieces)
    return padded / max(1, workload.num_tokens)
