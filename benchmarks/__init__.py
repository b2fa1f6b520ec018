"""The benchmark harness: minibert beside its peers, in one interleaved run. See docs/benchmarks.md."""
