"""A long-lived process that holds one contender and answers requests.

    python benchmarks/peers/worker.py '{"module": "with_minibert", "load": {...}}'

Runs in the contender's own environment and imports nothing of minibert by itself. One JSON object
per line: requests come on standard input, answers go to standard output; whatever a library prints
goes to standard error. The first answer says that the contender is loaded, or why it is not.
Texts come as JSON files, vectors go out as `.npy` files.

Requests:
    {"do": "encode", "texts": FILE, "first": 0, "count": N, "size": M, "vectors": FILE or null}
        encodes N texts in calls of M texts each; answers {"seconds": [per call]}.
    {"do": "single", "texts": FILE, "limit_s": S, "most": N}
        encodes one text after the other for S seconds; answers {"seconds": [per text]}.
    {"do": "about"}
        answers {"peak_bytes": ..., "versions": {...}, ...}.
    {"do": "quit"}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


def peak_bytes() -> int | None:
    """Largest resident set of this process so far; None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


@cache
def read_texts(path: str) -> list[str]:
    """Texts of a JSON file, read once."""
    texts: list[str] = json.loads(Path(path).read_text(encoding="utf-8"))
    return texts


def answer(peer: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request."""
    if request["do"] == "about":
        return {"peak_bytes": peak_bytes(), **peer.about()}
    texts = read_texts(request["texts"])
    if request["do"] == "single":
        return {"seconds": time_single(peer, texts, request["limit_s"], request["most"])}
    first, count, size = request["first"], request["count"], request["size"]
    chosen = texts[first : first + count]
    calls = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    seconds, rows = [], []
    for call in calls:
        begin = time.perf_counter()
        vectors = peer.encode(call)
        seconds.append(time.perf_counter() - begin)
        rows.append(vectors)
    if request.get("vectors"):
        np.save(request["vectors"], np.concatenate([np.asarray(r, np.float32) for r in rows]))
    return {"seconds": seconds}


def time_single(peer: Any, texts: list[str], limit_s: float, most: int) -> list[float]:
    """Seconds of each text, encoded alone, until the time or the number is reached."""
    seconds: list[float] = []
    end = time.perf_counter() + limit_s
    while len(seconds) < most and (time.perf_counter() < end or not seconds):
        text = texts[len(seconds) % len(texts)]
        begin = time.perf_counter()
        peer.encode([text])
        seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Load the contender, then answer until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    spec = json.loads(sys.argv[1])
    try:
        peer = importlib.import_module(spec["module"]).load(**spec["load"])
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"loaded": True})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            return
        try:
            say(answer(peer, request))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
