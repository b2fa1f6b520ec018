"""Stages that ask what speed costs: starts and memory, threads, many texts, a busy neighbour."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from benchmarks.crew import BATCH_TEXTS, LONGEST_REQUEST_S, Crew
from benchmarks.driver import Worker, WorkerProblem
from benchmarks.environments import tidy
from benchmarks.rounds import Sample, rotated, spread

MOST_TEXTS_OF_ALL = 1000


def footprint(crew: Crew, share_s: float) -> dict[str, Any]:
    """Cold start and peak memory of fresh processes, and the size of what was installed."""
    one = crew.source.single(1)
    count = int(share_s / 2 / sum(62 / crew.speeds[key] for key in crew.running))
    many = crew.source.mixed(min(max(64, min(count, 256)), crew.settings.most_texts))
    end = time.monotonic() + share_s
    found: dict[str, Any] = {}
    starts = min(3, crew.settings.rounds)
    for key in crew.running:
        contender = crew.contenders[key]
        seconds: list[float] = []
        peak: dict[str, Any] = {}
        try:
            while len(seconds) < starts and (not seconds or time.monotonic() < end):
                begin = time.monotonic()
                with crew.start(contender) as worker:
                    worker.ask(crew.request(one, BATCH_TEXTS))
                    seconds.append(time.monotonic() - begin)
                    if not peak:
                        peak["first"] = worker.ask({"do": "about"})
                        worker.ask(crew.request(many, BATCH_TEXTS))
                        peak["many"] = worker.ask({"do": "about"})
        except WorkerProblem as problem:
            crew.fail(key, str(problem))
            continue
        found[key] = {
            "cold_start_s": spread(seconds),
            "starts": len(seconds),
            "peak_first_bytes": peak["first"].pop("peak_bytes"),
            "peak_bytes": peak["many"]["peak_bytes"],
            "installed_bytes": crew.environments.installed_bytes(contender.environment),
            "about": {
                name: tidy(text) if isinstance(text, str) else text
                for name, text in peak["first"].items()
            },
        }
    crew.note(many, name="footprint")
    return {"contenders": found}


def thread_scaling(crew: Crew, share_s: float) -> dict[str, Any]:
    """Speed on all threads over speed on one, the two in turn."""
    if crew.settings.threads < 2:
        return {"skipped": "there is one thread"}
    keys = crew.closer_look()
    rate = sum(1 / crew.speeds[key] for key in keys)
    count = int(share_s / 3 / (3 * rate * 62))
    workload = crew.source.mixed(max(64, min(count, 320, crew.settings.most_texts)))
    crew.note(workload, name="threads")
    request = crew.request(workload, BATCH_TEXTS)
    end = time.monotonic() + share_s
    ratios: dict[str, list[tuple[Sample, Sample]]] = {key: [] for key in keys}
    alone: dict[str, Worker] = {}
    try:
        for key in list(keys):
            try:
                alone[key] = crew.start(crew.contenders[key], threads=1)
                alone[key].ask(crew.request(crew.source.mixed(16), BATCH_TEXTS))
            except WorkerProblem as problem:
                crew.say(f"{key} on one thread is out: {problem}")
                keys.remove(key)
        for repeat in range(crew.settings.rounds):
            if repeat and time.monotonic() > end:
                break
            for key in keys:
                one = alone[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                time.sleep(crew.settings.settle_s)
                both = crew.workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
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
    return {"threads": crew.settings.threads, "contenders": found}


def text_scaling(crew: Crew, share_s: float) -> dict[str, Any]:
    """Microseconds a token of one call, from few texts to many.

    The largest counts are left to the fastest minibert, and to the time that there is.
    """
    end = time.monotonic() + share_s
    found: dict[str, Any] = {}
    keys = sorted(crew.closer_look(), key=lambda key: crew.speeds[key])
    fastest = max(keys, key=lambda k: (crew.contenders[k].is_minibert, crew.speeds[k]))
    for key in [*(key for key in keys if key != fastest), fastest]:
        costs: dict[str, Any] = {}
        for count in crew.settings.scaling_counts:
            if key != fastest and count > MOST_TEXTS_OF_ALL:
                continue
            if costs and 1.2 * count * 62 / crew.speeds[key] > end - time.monotonic():
                continue
            workload = crew.source.mixed(count)
            try:
                sample = crew.workers[key].sample(
                    crew.request(workload, BATCH_TEXTS), timeout_s=LONGEST_REQUEST_S
                )
            except WorkerProblem as problem:
                crew.fail(key, str(problem))
                break
            costs[str(count)] = {
                "us_per_token": 1e6 * sample.total_s / workload.num_tokens,
                "disturbed": not sample.clean,
            }
        found[key] = costs
    return {"contenders": found}


def neighbour(crew: Crew, share_s: float) -> dict[str, Any]:
    """Speed beside one process that keeps a core busy, over the speed without it, in turn."""
    count = int(share_s / 6 / sum(62 / crew.speeds[key] for key in crew.running))
    workload = crew.source.mixed(min(max(128, min(count, 256)), crew.settings.most_texts))
    crew.note(workload, name="neighbour")
    request = crew.request(workload, BATCH_TEXTS)
    found: dict[str, Any] = {}
    end = time.monotonic() + share_s
    pairs: dict[str, list[tuple[Sample, Sample]]] = {key: [] for key in crew.running}
    repeats = min(3, crew.settings.rounds)
    for repeat in range(repeats):
        if repeat and time.monotonic() > end:
            break
        for key in rotated(crew.running, repeat):
            try:
                time.sleep(crew.settings.settle_s)
                free = crew.workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
                with BusyProcess():
                    beside = crew.workers[key].sample(request, timeout_s=LONGEST_REQUEST_S)
            except WorkerProblem as problem:
                crew.fail(key, str(problem))
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
