"""Peak memory of encoding 10,000 mixed texts, against the bound that the engine predicts.

    python -m benchmarks.memory MODEL [NUM_TEXTS]

Prints the resident memory after loading, its peak while encoding, and the bound; exits with 1 where
the bound does not hold. Linux only (reads /proc/self/status).
"""

from __future__ import annotations

import sys
import threading
import time

from benchmarks.workloads import TextSource
from minibert import Engine


def resident_bytes() -> int:
    """Resident set of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def main() -> None:
    """Encode and report."""
    model, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    engine = Engine.from_pretrained(model, truncation="silent")
    source = TextSource(engine.token_count, max_length=engine.max_length)
    workload = source.mixed(count)
    texts = list(workload.texts)
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
    print(f"{len(vectors)} texts, {workload.num_tokens} tokens in {seconds:.1f} s")
    print(f"loaded {loaded / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB")
    print(f"grown by {(peak - loaded) / 1e6:.1f} MB, predicted at most {bound / 1e6:.1f} MB")
    sys.exit(0 if peak - loaded <= bound else 1)


if __name__ == "__main__":
    main()
