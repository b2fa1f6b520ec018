"""Stages that ask how right and how fast: vectors, throughput, latency of single texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import COSINE_MEAN
from benchmarks.crew import Crew
from benchmarks.driver import WorkerProblem
from benchmarks.rounds import Round, cosines, percentile, summarise
from benchmarks.workloads import Workload

REQUESTS = {"request-32": 32, "request-96": 96}


def correctness(crew: Crew) -> dict[str, Any]:
    """Cosine of every contender to the baseline on texts of all lengths; wrong ones go."""
    parts = [crew.source.mixed(64), crew.source.short(32), crew.source.long(8)]
    texts = tuple(text for part in parts for text in part.texts)
    sample = Workload("correctness", texts, tuple(n for part in parts for n in part.seqlens))
    target = crew.scratch / "vectors.npy"
    request = crew.request(sample, 48, vectors=target)
    found: dict[str, Any] = {}
    expected: Any = None
    for key in [crew.baseline, *(k for k in crew.running if k != crew.baseline)]:
        try:
            crew.workers[key].ask(request)
        except WorkerProblem as problem:
            if key == crew.baseline:
                raise
            crew.fail(key, str(problem))
            continue
        vectors = np.load(target)
        expected = vectors if expected is None else expected
        found[key] = compare(vectors, expected, crew.contenders[key].dtype)
        if not found[key]["right"]:
            crew.fail(key, f"wrong: {found[key]['why']}")
    crew.note(sample)
    return found


def batch_workload(crew: Crew, name: str, share_s: float) -> Workload:
    """As many texts as all rounds have time for, within bounds that keep batches full."""
    make = {"mixed": crew.source.mixed, "short": crew.source.short, "long": crew.source.long}
    trial = make[name](32)
    text_s = sum(trial.num_tokens / 32 / crew.speeds[key] for key in crew.running)
    fewest = min(4 * 32 * crew.settings.threads, crew.settings.most_texts)
    if name == "long":
        fewest //= 4
    count = int(share_s / (crew.settings.rounds + 1) / text_s)
    if fewest * text_s > share_s:  # not even one round fits: on a slow machine, smaller ones
        fewest = max(8, int(share_s / 2 / text_s))
    return make[name](max(fewest, min(count, crew.settings.most_texts)))


def requests(crew: Crew, name: str, share_s: float) -> Workload:
    """As many requests of a fixed size as all rounds have time for, at least one."""
    size = REQUESTS[name]
    trial = crew.source.mixed(size, name=name, stream=size)
    request_s = sum(trial.num_tokens / crew.speeds[key] for key in crew.running)
    calls = int(share_s / (crew.settings.rounds + 1) / request_s)
    return crew.source.mixed(
        size * max(1, min(calls, crew.settings.most_calls)), name=name, stream=size
    )


def throughput(crew: Crew, workload: Workload, size: int, share_s: float) -> dict[str, Any]:
    """Tokens a second in calls of `size` texts, and the ratios to the baseline."""
    crew.note(workload, size)
    rounds = crew.rounds(crew.request(workload, size), share_s, with_ceilings=True)
    calls = -(-len(workload.texts) // size)
    found: dict[str, Any] = {"contenders": {}, "samples": raw(rounds)}
    for key in crew.contenders:
        summary = summarise(rounds, key, crew.baseline, amount=workload.num_tokens)
        if summary is not None:
            times = [s for entry in rounds if key in entry for s in entry[key].seconds]
            summary["call_ms"] = 1e3 * percentile(times, 50)
            found["contenders"][key] = summary
    found["calls"] = calls
    return found


def single(crew: Crew, share_s: float) -> dict[str, Any]:
    """Latency of single texts: percentiles over all undisturbed rounds."""
    workload = crew.source.single(50)
    crew.note(workload, 1)
    limit_s = share_s / (crew.settings.rounds + 1) / max(1, len(crew.running))
    limit_s = max(0.05, limit_s - crew.settings.settle_s)
    request = crew.single_request(workload, limit_s=limit_s, most=crew.settings.most_singles)
    rounds = crew.rounds(request, share_s, with_ceilings=False)
    found: dict[str, Any] = {}
    for key in crew.contenders:
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
