"""One run: correctness first, then rounds that interleave the contenders, workload by workload.

A run is a list of stages. What a stage finds is written to a file as soon as it is complete, so an
interrupted run continues with the stage that it was in. Every stage has a share of the run's time;
one that cannot finish its rounds within it keeps those that it has, and says so by their number.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ceilings
from benchmarks.contenders import COSINE_MEAN, Contender
from benchmarks.driver import Worker, WorkerProblem
from benchmarks.environments import EnvironmentProblem, Environments, Graphs, tidy
from benchmarks.models import Shape, shape_of, token_counter
from benchmarks.rounds import (
    Round,
    Sample,
    clean_count,
    cosines,
    percentile,
    rotated,
    spread,
    summarise,
)
from benchmarks.workloads import TextSource, Workload

BATCH_TEXTS = 1 << 30  # one call with all texts
REQUESTS = {"request-32": 32, "request-96": 96}
LONGEST_REQUEST_S = 240.0
MOST_TEXTS_OF_ALL = 1000


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


SHARES = {
    "correctness": 6.0,
    "mixed": 34.0,
    "short": 9.0,
    "long": 12.0,
    "request-32": 5.0,
    "request-96": 7.0,
    "single": 6.0,
    "footprint": 8.0,
    "threads": 5.0,
    "texts": 10.0,
    "neighbour": 6.0,
}
"""Stage, in order -> share of the time."""


class Run:
    """The contenders' workers, the texts and what was found so far."""

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
    ) -> None:
        """Continue the run in the state file where it is the same run, else begin one.

        Args:
            contenders: all that are wanted; those that fail are left out with their reason.
            model: folder.
            environments: where the contenders run; `python(name)` is asked of it.
            settings: how long and how much.
            baseline: key of the contender that ratios and cosines refer to.
            state: file of the finished stages.
            identity: what makes two runs the same run.
            say: receives a line of progress.
        """
        self.contenders = {contender.key: contender for contender in contenders}
        self.model = model
        self.shape: Shape = shape_of(model)
        self.settings = settings
        self.baseline = baseline
        self._environments = environments
        self._state = state
        self._identity = identity
        self._say = say
        self._log_folder = state.parent / "logs"
        self._graphs = Graphs(environments, model, lambda: self._source.mixed(300).texts)
        self._workers: dict[str, Worker] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="minibert-bench-")
        self._files: dict[str, str] = {}
        self._speeds: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.stages: dict[str, Any] = {}
        self.workloads: dict[str, Any] = {}
        self._spent_s = 0.0
        self._begin = time.monotonic()
        self._resume()

    @cached_property
    def _source(self) -> TextSource:
        count = token_counter(self.model)
        return TextSource(count, max_length=self.shape.max_length, seed=self.settings.seed)

    # ---- the run ------------------------------------------------------------------------------
    def run(self) -> dict[str, Any]:
        """Carry out every stage that is not in the state file; return all of them by name."""
        self._begin = time.monotonic() - self._spent_s
        deadline = self._begin + 60 * self.settings.minutes
        try:
            remaining = [stage for stage in SHARES if stage not in self.stages]
            if remaining:
                self._start_all()
                # Installing and converting, where a resumed run needed it, costs no run time.
                self._begin = time.monotonic() - self._spent_s
                deadline = self._begin + 60 * self.settings.minutes
                self._warm_up()
            while remaining:
                found: Any
                stage, left = remaining[0], deadline - time.monotonic()
                share = SHARES[stage] / sum(SHARES[name] for name in remaining)
                if left <= 0 and stage != "correctness":
                    found = {"skipped": "the run's time was used up"}
                else:
                    self._say(f"{stage}: up to {max(0.0, left * share):.0f} s")
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

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._scratch.cleanup()

    def _stage(self, stage: str, share_s: float) -> Any:
        if stage == "correctness":
            return self._correctness()
        if stage in ("mixed", "short", "long"):
            return self._throughput(self._batch_workload(stage, share_s), BATCH_TEXTS, share_s)
        if stage in REQUESTS:
            return self._throughput(self._requests(stage, share_s), REQUESTS[stage], share_s)
        if stage == "single":
            return self._single(share_s)
        if stage == "footprint":
            return self._footprint(share_s)
        if stage == "threads":
            return self._thread_scaling(share_s)
        if stage == "texts":
            return self._text_scaling(share_s)
        return self._neighbour(share_s)

    # ---- contenders ---------------------------------------------------------------------------
    @property
    def running(self) -> list[str]:
        """Keys of the contenders that still run, in the order of the tables."""
        return [key for key in self.contenders if key in self._workers]

    def _start_all(self) -> None:
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
                self._workers[key] = self._start(contender)
            except (EnvironmentProblem, WorkerProblem) as problem:
                self._fail(key, str(problem))
            self._check_baseline()

    def _check_baseline(self) -> None:
        if self.baseline not in self._workers:
            reason = self.problems.get(self.baseline, "it is not among the contenders")
            self.close()
            raise WorkerProblem(f"the baseline {self.baseline} cannot run: {reason}")

    def _start(self, contender: Contender, *, threads: int | None = None) -> Worker:
        load = {**contender.options, "model": str(self.model)}
        if contender.graph is not None:
            load["graph"] = str(self._graphs.path(contender.graph))
        return Worker(
            self._environments.python(contender.environment),
            contender.module,
            load,
            threads=threads or self.settings.threads,
            log=self._log_folder / f"{contender.key}.log",
        )

    def _fail(self, key: str, reason: str) -> None:
        self._say(f"{key} is out: {reason}")
        self.problems[key] = tidy(reason)
        worker = self._workers.pop(key, None)
        if worker is not None:
            worker.close()

    def _warm_up(self) -> None:
        """Let every contender compute a little; keep its speed, by which workloads are sized."""
        warm = self._source.mixed(32, name="warm-up", stream=5)
        for key in self.running:
            try:
                for _ in range(2):
                    seconds = self._workers[key].ask(self._request(warm, BATCH_TEXTS))["seconds"]
                self._workers[key].ask(self._single_request(warm, limit_s=0.05, most=8))
            except WorkerProblem as problem:
                self._fail(key, str(problem))
                continue
            self._speeds[key] = warm.num_tokens / sum(seconds)

    # ---- requests -----------------------------------------------------------------------------
    def _file(self, workload: Workload) -> str:
        if workload.digest not in self._files:
            path = Path(self._scratch.name) / f"{workload.digest}.json"
            path.write_text(json.dumps(workload.texts), encoding="utf-8")
            self._files[workload.digest] = str(path)
        return self._files[workload.digest]

    def _request(
        self, workload: Workload, size: int, *, vectors: Path | None = None
    ) -> dict[str, Any]:
        return {
            "do": "encode",
            "texts": self._file(workload),
            "first": 0,
            "count": len(workload.texts),
            "size": size,
            "vectors": None if vectors is None else str(vectors),
        }

    def _single_request(self, workload: Workload, *, limit_s: float, most: int) -> dict[str, Any]:
        texts = self._file(workload)
        return {"do": "single", "texts": texts, "limit_s": limit_s, "most": most}

    def _rounds(
        self, request: dict[str, Any], share_s: float, *, rounds: int | None = None
    ) -> list[Round]:
        """Rounds of all contenders until enough are undisturbed, or the time is used up."""
        wanted = rounds or self.settings.rounds
        done: list[Round] = []
        end = time.monotonic() + share_s
        while True:
            begin = time.monotonic()
            entry: Round = {}
            for key in rotated(self.running, len(done)):
                time.sleep(self.settings.settle_s)
                try:
                    entry[key] = self._workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                except WorkerProblem as problem:
                    self._fail(key, str(problem))
            done.append(entry)
            clean = min((clean_count(done, key, self.baseline) for key in self.running), default=0)
            now = time.monotonic()
            if clean >= wanted or len(done) >= 2 * wanted or now + (now - begin) > end:
                return done

    # ---- stages -------------------------------------------------------------------------------
    def _correctness(self) -> dict[str, Any]:
        """Cosine of every contender to the baseline on texts of all lengths; wrong ones go."""
        parts = [self._source.mixed(64), self._source.short(32), self._source.long(8)]
        texts = tuple(text for part in parts for text in part.texts)
        sample = Workload("correctness", texts, tuple(n for part in parts for n in part.seqlens))
        target = Path(self._scratch.name) / "vectors.npy"
        request = self._request(sample, 48, vectors=target)
        found: dict[str, Any] = {}
        expected: Any = None
        for key in [self.baseline, *(k for k in self.running if k != self.baseline)]:
            try:
                self._workers[key].ask(request)
            except WorkerProblem as problem:
                if key == self.baseline:
                    raise
                self._fail(key, str(problem))
                continue
            vectors = np.load(target)
            expected = vectors if expected is None else expected
            found[key] = compare(vectors, expected, self.contenders[key].dtype)
            if not found[key]["right"]:
                self._fail(key, f"wrong: {found[key]['why']}")
        self._note(sample)
        return found

    def _batch_workload(self, name: str, share_s: float) -> Workload:
        """As many texts as all rounds have time for, within bounds that keep batches full."""
        make = {"mixed": self._source.mixed, "short": self._source.short, "long": self._source.long}
        trial = make[name](32)
        text_s = sum(trial.num_tokens / 32 / self._speeds[key] for key in self.running)
        fewest = min(4 * 32 * self.settings.threads, self.settings.most_texts)
        if name == "long":
            fewest //= 4
        count = int(share_s / (self.settings.rounds + 1) / text_s)
        if fewest * text_s > share_s:  # not even one round fits: on a slow machine, smaller ones
            fewest = max(8, int(share_s / 2 / text_s))
        return make[name](max(fewest, min(count, self.settings.most_texts)))

    def _requests(self, name: str, share_s: float) -> Workload:
        """As many requests of a fixed size as all rounds have time for, at least one."""
        size = REQUESTS[name]
        trial = self._source.mixed(size, name=name, stream=size)
        request_s = sum(trial.num_tokens / self._speeds[key] for key in self.running)
        calls = int(share_s / (self.settings.rounds + 1) / request_s)
        return self._source.mixed(
            size * max(1, min(calls, self.settings.most_calls)), name=name, stream=size
        )

    def _throughput(self, workload: Workload, size: int, share_s: float) -> dict[str, Any]:
        self._note(workload, size)
        rounds = self._rounds(self._request(workload, size), share_s)
        calls = -(-len(workload.texts) // size)
        found: dict[str, Any] = {"contenders": {}, "samples": raw(rounds)}
        for key in self.contenders:
            summary = summarise(rounds, key, self.baseline, amount=workload.num_tokens)
            if summary is not None:
                times = [s for entry in rounds if key in entry for s in entry[key].seconds]
                summary["call_ms"] = 1e3 * percentile(times, 50)
                found["contenders"][key] = summary
        found["calls"] = calls
        return found

    def _single(self, share_s: float) -> dict[str, Any]:
        """Latency of single texts: percentiles over all undisturbed rounds."""
        workload = self._source.single(50)
        self._note(workload, 1)
        limit_s = share_s / (self.settings.rounds + 1) / max(1, len(self.running))
        limit_s = max(0.05, limit_s - self.settings.settle_s)
        request = self._single_request(workload, limit_s=limit_s, most=self.settings.most_singles)
        rounds = self._rounds(request, share_s)
        found: dict[str, Any] = {}
        for key in self.contenders:
            samples = [entry[key] for entry in rounds if key in entry]
            clean = [sample for sample in samples if sample.clean]
            disturbed = not clean
            times = [1e3 * s for sample in clean or samples for s in sample.seconds]
            if times:
                found[key] = {
                    "median_ms": percentile(times, 50),
                    "p90_ms": percentile(times, 90),
                    "p99_ms": percentile(times, 99),
                    "texts": len(times),
                    "rounds": len(clean or samples),
                    "disturbed": disturbed,
                }
        return {"contenders": found}

    def _footprint(self, share_s: float) -> dict[str, Any]:
        """Cold start and peak memory of fresh processes, and the size of what was installed."""
        one = self._source.single(1)
        count = int(share_s / 2 / sum(62 / self._speeds[key] for key in self.running))
        many = self._source.mixed(min(max(64, min(count, 256)), self.settings.most_texts))
        end = time.monotonic() + share_s
        found: dict[str, Any] = {}
        starts = min(3, self.settings.rounds)
        for key in self.running:
            contender = self.contenders[key]
            seconds: list[float] = []
            peak: dict[str, Any] = {}
            try:
                while len(seconds) < starts and (not seconds or time.monotonic() < end):
                    begin = time.monotonic()
                    with self._start(contender) as worker:
                        worker.ask(self._request(one, BATCH_TEXTS))
                        seconds.append(time.monotonic() - begin)
                        if not peak:
                            peak["first"] = worker.ask({"do": "about"})
                            worker.ask(self._request(many, BATCH_TEXTS))
                            peak["many"] = worker.ask({"do": "about"})
            except WorkerProblem as problem:
                self._fail(key, str(problem))
                continue
            found[key] = {
                "cold_start_s": spread(seconds),
                "starts": len(seconds),
                "peak_first_bytes": peak["first"].pop("peak_bytes"),
                "peak_bytes": peak["many"]["peak_bytes"],
                "installed_bytes": self._environments.installed_bytes(contender.environment),
                "about": {
                    name: tidy(text) if isinstance(text, str) else text
                    for name, text in peak["first"].items()
                },
            }
        self._note(many)
        return {"contenders": found}

    def _thread_scaling(self, share_s: float) -> dict[str, Any]:
        """Speed on all threads over speed on one, the two in turn."""
        if self.settings.threads < 2:
            return {"skipped": "there is one thread"}
        keys = self._closer_look()
        rate = sum(1 / self._speeds[key] for key in keys)
        count = int(share_s / 3 / (3 * rate * 62))
        workload = self._source.mixed(max(64, min(count, 320, self.settings.most_texts)))
        self._note(workload, name="threads")
        request = self._request(workload, BATCH_TEXTS)
        end = time.monotonic() + share_s
        ratios: dict[str, list[tuple[Sample, Sample]]] = {key: [] for key in keys}
        alone: dict[str, Worker] = {}
        try:
            for key in list(keys):
                try:
                    alone[key] = self._start(self.contenders[key], threads=1)
                    alone[key].ask(self._request(self._source.mixed(16), BATCH_TEXTS))
                except WorkerProblem as problem:
                    self._say(f"{key} on one thread is out: {problem}")
                    keys.remove(key)
            for repeat in range(self.settings.rounds):
                if repeat and time.monotonic() > end:
                    break
                for key in keys:
                    one = alone[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                    time.sleep(self.settings.settle_s)
                    both = self._workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                    ratios[key].append((one, both))
        finally:
            for worker in alone.values():
                worker.close()
        found = {}
        for key in keys:
            pairs = ratios[key]
            clean = [pair for pair in pairs if pair[0].clean and pair[1].clean]
            found[key] = {
                "speedup": spread([one.total_s / all_.total_s for one, all_ in clean or pairs]),
                "rounds": len(clean or pairs),
                "disturbed": not clean,
            }
        return {"threads": self.settings.threads, "contenders": found}

    def _text_scaling(self, share_s: float) -> dict[str, Any]:
        """Microseconds a token of one call, from few texts to many.

        The largest counts are left to the fastest minibert, and to the time that there is.
        """
        end = time.monotonic() + share_s
        found: dict[str, Any] = {}
        keys = sorted(self._closer_look(), key=lambda key: self._speeds[key])
        fastest = max(keys, key=lambda k: (self.contenders[k].is_minibert, self._speeds[k]))
        for key in [*(key for key in keys if key != fastest), fastest]:
            costs: dict[str, Any] = {}
            for count in self.settings.scaling_counts:
                if key != fastest and count > MOST_TEXTS_OF_ALL:
                    continue
                if costs and 1.2 * count * 62 / self._speeds[key] > end - time.monotonic():
                    continue
                workload = self._source.mixed(count)
                try:
                    sample = self._workers[key].sample(
                        self._request(workload, BATCH_TEXTS), timeout_s=LONGEST_REQUEST_S
                    )
                except WorkerProblem as problem:
                    self._fail(key, str(problem))
                    break
                costs[str(count)] = {
                    "us_per_token": 1e6 * sample.total_s / workload.num_tokens,
                    "disturbed": not sample.clean,
                }
            found[key] = costs
        return {"contenders": found}

    def _neighbour(self, share_s: float) -> dict[str, Any]:
        """Speed beside one process that keeps a core busy, over the speed without it, in turn."""
        count = int(share_s / 6 / sum(62 / self._speeds[key] for key in self.running))
        workload = self._source.mixed(min(max(128, min(count, 256)), self.settings.most_texts))
        self._note(workload, name="neighbour")
        request = self._request(workload, BATCH_TEXTS)
        found: dict[str, Any] = {}
        end = time.monotonic() + share_s
        pairs: dict[str, list[tuple[Sample, Sample]]] = {key: [] for key in self.running}
        repeats = min(3, self.settings.rounds)
        for repeat in range(repeats):
            if repeat and time.monotonic() > end:
                break
            for key in rotated(self.running, repeat):
                try:
                    time.sleep(self.settings.settle_s)
                    free = self._workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                    with BusyProcess():
                        beside = self._workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                except WorkerProblem as problem:
                    self._fail(key, str(problem))
                    continue
                pairs[key].append((free, beside))
        for key, measured in pairs.items():
            clean = [pair for pair in measured if pair[0].clean]
            if measured:
                kept = [free.total_s / beside.total_s for free, beside in clean or measured]
                found[key] = {
                    "kept": spread(kept),
                    "rounds": len(kept),
                    "disturbed": not clean,
                }
        return {"contenders": found}

    def _closer_look(self) -> list[str]:
        """The baseline and minibert on its kernels: those whose scaling is measured."""
        chosen = [
            key
            for key in self.running
            if key == self.baseline
            or (self.contenders[key].is_minibert and key != "minibert-numpy")
        ]
        return chosen

    # ---- bookkeeping --------------------------------------------------------------------------
    def _note(self, workload: Workload, size: int = 32, *, name: str | None = None) -> None:
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
        self._say(f"continuing after {', '.join(self.stages)}")

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


class BusyProcess:
    """A process that keeps one core busy, for the time of a `with` block."""

    def __enter__(self) -> None:
        """Start it and let it get going."""
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        time.sleep(0.1)

    def __exit__(self, *error: object) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def compare(vectors: Any, expected: Any, dtype: str) -> dict[str, Any]:
    """How near vectors are to the baseline's.

    Args:
        vectors: (num_texts, dimension).
        expected: the same of the baseline.
        dtype: decides the mean cosine that is asked for.

    Returns:
        `right`, `why` (empty where right), and `cosine_min`, `cosine_mean`, `max_difference` where
        they can be told.
    """
    if vectors.shape != expected.shape:
        why = f"vectors are {vectors.shape}, must be {expected.shape}"
        return {"right": False, "why": why}
    found = cosines(vectors, expected)
    if not np.all(np.isfinite(found)):
        return {"right": False, "why": f"{np.sum(~np.isfinite(found))} vectors are not finite"}
    mean = float(found.mean())
    right = mean >= COSINE_MEAN[dtype]
    why = "" if right else f"mean cosine {mean:.5f}, must be at least {COSINE_MEAN[dtype]}"
    return {
        "right": right,
        "why": why,
        "cosine_min": float(found.min()),
        "cosine_mean": mean,
        "max_difference": float(np.abs(vectors - expected).max()),
        "texts": len(vectors),
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


def raw(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Seconds and foreign share of every sample, rounded for the results file."""
    return [
        {
            key: {
                "s": round(sample.total_s, 5),
                "foreign": None if sample.foreign is None else round(sample.foreign, 3),
            }
            for key, sample in entry.items()
        }
        for entry in rounds
    ]
