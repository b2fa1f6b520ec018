"""Peak memory of encoding 10,000 mixed texts, against the bound that the engine predicts.

    python benchmarks/memory.py MODEL [NUM_TEXTS]

Prints the resident memory after loading, its peak while encoding, and the bound. Linux only (reads
/proc/self/status). Lengths are log-normal with a mean of about 60 tokens; words come from the
documentation that ships with Python.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from pydoc_data.topics import topics

import numpy as np

from minibert import Engine


def resident_bytes() -> int:
    """Resident set of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def mixed_texts(count: int) -> list[str]:
    """Texts of log-normal lengths."""
    words = re.findall(r"\S+", " ".join(topics.values()))
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(3.4, 0.8, count), 2, 400).astype(int)
    starts = rng.integers(0, len(words) - 400, count)
    return [" ".join(words[s : s + n]) for s, n in zip(starts, sizes, strict=True)]


def main() -> None:
    """Encode and report."""
    model, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    texts = mixed_texts(count)
    engine = Engine.from_pretrained(model, truncation="silent")
    engine.encode(texts[:8])
    bound = engine.memory_bound(texts)
    loaded = peak = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    vectors = engine.encode(texts, normalize_embeddings=True)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    tokens = sum(min(n, engine.max_length) for n in engine.token_count(texts))
    print(f"{len(vectors)} texts, {tokens} tokens in {seconds:.1f} s")
    print(f"loaded {loaded / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB")
    print(f"grown by {(peak - loaded) / 1e6:.1f} MB, predicted at most {bound / 1e6:.1f} MB")
    sys.exit(0 if peak - loaded <= bound else 1)


if __name__ == "__main__":
    main()
