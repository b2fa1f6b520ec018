"""minibert beside its peers, measured in one interleaved run. See docs/benchmarks.md."""
