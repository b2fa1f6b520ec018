"""The results file: what a run found, on what and with what; the tables are made of it."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import ceilings
from benchmarks.environments import CHECKOUT, sources_digest, weights_digest
from benchmarks.harness import Run
from benchmarks.models import MINILM, shape_of
from benchmarks.rounds import DISTURBED_ABOVE
from minibert.cli import machine
from minibert.kernels.cpu import cores

SCHEMA = 1
THROUGHPUT = ("mixed", "short", "long", "request-32", "request-96")
FEATURES_IN_NAMES = ("AMX", "AVX-512 VNNI", "AVX-512", "AVX-VNNI", "AVX2", "NEON")


def device() -> dict[str, Any]:
    """The processor and the system."""
    return {
        "processor": machine.cpu_model(),
        "features": machine.cpu_features() or [],
        "cores": cores.affinity_cores(),
        "quota": cores.cgroup_quota(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def memory_bytes() -> int | None:
    """The machine's memory; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether measured files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or None,
        "changed": bool(git("status", "--porcelain", "--", "minibert", "kernels", "weights")),
        "sources": sources_digest()[:16],
    }


def assemble(
    run: Run,
    stages: Mapping[str, Any],
    found_ceilings: Mapping[str, Any],
    options: Mapping[str, Any],
    measured_commit: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole results file.

    Args:
        run: finished.
        stages: of `Run.run`.
        found_ceilings: of `ceilings.measure`.
        options: of the command line, for the record.
        measured_commit: of `commit`, taken before the run.
    """
    shape = shape_of(run.model)
    footprint = stages["footprint"].get("contenders", {})
    return {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "device": device(),
        **measured_commit,
        "options": dict(options),
        "disturbed_above": DISTURBED_ABOVE,
        "model": {
            "name": run.model.name,
            "digest": weights_digest(run.model),
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.num_attention_heads,
            "max_length": shape.max_length,
        },
        "baseline": run.baseline,
        "contenders": {
            key: {
                "name": contender.name,
                "dtype": contender.dtype,
                "minibert": contender.is_minibert,
                "problem": run.problems.get(key),
                "about": footprint.get(key, {}).get("about"),
            }
            for key, contender in run.contenders.items()
        },
        "ceilings": dict(found_ceilings),
        "workloads": run.workloads,
        "floors": floors(run, stages, found_ceilings),
        **stages,
    }


def floors(
    run: Run, stages: Mapping[str, Any], found_ceilings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Share of the ceiling of its own number format that each contender reaches, by workload.

    `<workload>` is the share of the highest rate of all moments, `<workload> then` the median share
    of what the cores reached just before each sample.
    """
    found: dict[str, dict[str, Any]] = {}
    for workload in THROUGHPUT:
        about = run.workloads.get(workload)
        if about is None:
            continue
        per_token = about["operations"] / about["tokens"]
        for key, summary in stages[workload].get("contenders", {}).items():
            top = ceilings.ceiling(found_ceilings, run.contenders[key].dtype)
            if top is not None:
                entry = found.setdefault(key, {"ceiling": top[0]})
                entry[workload] = summary["per_s"]["median"] * per_token / top[1]
                if summary["per_ceiling"] is not None:
                    entry[f"{workload} then"] = summary["per_ceiling"]["median"] * per_token
    return found


def markers(results: Mapping[str, Any]) -> str:
    """Name of the places in the pages where these results belong: one by model and instructions."""
    return _slug(f"benchmarks {_model(results)} {_feature(results)}")


def _model(results: Mapping[str, Any]) -> str:
    name: str = results["model"]["name"]
    return "" if name == MINILM else name


def _feature(results: Mapping[str, Any]) -> str:
    found = results["device"]["features"]
    return next((feature for feature in FEATURES_IN_NAMES if feature in found), "")


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def file_name(results: Mapping[str, Any]) -> str:
    """`<date>-<device>[-<model>].json`."""
    threads = f"{results['options']['threads']} threads"
    words = f"{results['device']['processor']} {_feature(results)} {threads} {_model(results)}"
    return f"{results['date']}-{_slug(words)}.json"


def save(results: Mapping[str, Any], folder: Path) -> Path:
    """Write a results file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(results)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path
