"""`minibert distil`: a student with fewer layers, fitted to its teacher in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minibert.compress.cutting import Say
from minibert.compress.prune import PruneResult, PruneTarget, prune_model
from minibert.errors import InputError
from minibert.loading import load_model


def distil_model(
    model: Path,
    target_folder: Path,
    layers: int,
    *,
    flops: float | None = None,
    texts: Sequence[str] | None = None,
    align: bool = True,
    overwrite: bool = False,
    say: Say = lambda line: None,
    progress: bool = False,
) -> PruneResult:
    """Write a student of a model.

    The student's layers are the teacher's, less those that are missed least. The layer before a gap
    takes over the layer_norms of the last one in it, and both its output matrices are fitted to
    give that layer's sums.

    Args:
        model: folder of the teacher; only read.
        target_folder: folder to be written.
        layers: of the student; fewer than the teacher's.
        flops: share of the teacher's operations that may remain; narrows the layers.
        texts: to calibrate with and to report on; the bundled ones when None.
        align: add a last linear map, from the student's pooled vectors to the teacher's.
        overwrite: whether an existing model folder may be replaced.
        say: receives a line before each slow step.
        progress: show a bar on standard error.

    Raises:
        InputError: as `prune_model`, or as many layers as the teacher has.
    """
    count = len(load_model(model).weights.layers)
    if not 1 <= layers < count:
        raise InputError(f"layers must be 1 to {count - 1}, the teacher has {count}, got {layers}")
    target = PruneTarget(flops=flops, drop_layers=count - layers)
    return prune_model(
        model,
        target_folder,
        target,
        texts=texts,
        align=align,
        overwrite=overwrite,
        say=say,
        progress=progress,
    )
