"""How small a pruned model is to be."""

from __future__ import annotations

from dataclasses import dataclass

from minibert.errors import InputError


@dataclass(frozen=True, slots=True)
class PruneTarget:
    """How small, by exactly one measure; without any, nothing is pruned.

    Attributes:
        speedup: time of the original over that of the result, on this machine.
        flops: share of the operations that may remain.
        latency_ms: milliseconds of one text of usual length, alone, on this machine.
        heads: of every layer; goes with no other measure than `intermediate`.
        intermediate: feed-forward width of every layer; likewise.
        drop_layers: whole layers to drop first; the least harmful ones.
    """

    speedup: float | None = None
    flops: float | None = None
    latency_ms: float | None = None
    heads: int | None = None
    intermediate: int | None = None
    drop_layers: int = 0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: naming the target and its rule.
        """
        given = [v for v in (self.speedup, self.flops, self.latency_ms) if v is not None]
        if len(given) > 1:
            raise InputError("the target must be one of speedup, flops and latency_ms, got several")
        if given and (self.heads is not None or self.intermediate is not None):
            raise InputError(
                "heads and intermediate must not come with speedup, flops or latency_ms, got both"
            )
        for name in ("heads", "intermediate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.speedup is not None and not self.speedup >= 1.0:
            raise InputError(f"speedup must be at least 1, got {self.speedup}")
        if self.flops is not None and not 0.0 < self.flops <= 1.0:
            raise InputError(f"flops must be above 0 and at most 1, got {self.flops}")
        if self.latency_ms is not None and not self.latency_ms > 0.0:
            raise InputError(f"latency_ms must be above 0, got {self.latency_ms}")
        if self.drop_layers < 0:
            raise InputError(f"drop_layers must be at least 0, got {self.drop_layers}")
