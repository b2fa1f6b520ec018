"""`minibert distil`: a student with fewer layers, fitted to its teacher in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minibert.compress.classifier import HeadOptions
from minibert.compress.cutting import Say
from minibert.compress.prune import PruneResult, PruneTarget, prune_model
from minibert.errors import InputError
from minibert.loading import load_model


def distil_model(
    model: Path,
    target_folder: Path,
    layers: int,
    *,
    heads: int | None = None,
    intermediate: int | None = None,
    flops: float | None = None,
    classify: HeadOptions | None = None,
    texts: Sequence[str] | None = None,
    align: bool = True,
    device: str = "auto",
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
        layers: of the student; fewer than the teacher's, or as many where it is narrower.
        heads: of each of the student's layers.
        intermediate: feed-forward width of each of the student's layers.
        flops: share of the teacher's operations that may remain; narrows the layers.
        classify: how the targets of a classifier's head are mixed; the defaults when None.
        texts: to calibrate with and to report on; the bundled ones when None.
        align: add a last linear map, from the student's pooled vectors to the teacher's; a
            classifier gets its head fitted instead.
        device: runs the models, as `Engine.from_pretrained`.
        overwrite: whether an existing model folder may be replaced.
        say: receives a line before each slow step.
        progress: show a bar on standard error.

    Raises:
        InputError: as `prune_model`, or as many layers as the teacher has.
    """
    count = len(load_model(model).weights.layers)
    narrower = heads is not None or intermediate is not None or flops is not None
    most = count if narrower else count - 1
    if not 1 <= layers <= most:
        raise InputError(f"layers must be 1 to {most}, the teacher has {count}, got {layers}")
    target = PruneTarget(
        flops=flops, heads=heads, intermediate=intermediate, drop_layers=count - layers
    )
    return prune_model(
        model,
        target_folder,
        target,
        texts=texts,
        align=align,
        classify=classify or HeadOptions(),
        device=device,
        overwrite=overwrite,
        say=say,
        progress=progress,
    )
