"""2:4 sparse weights as gemm_sparse.cu reads them: the kept values, and where they belong.

Of every 4 consecutive inputs an output keeps at most 2. Kept values lie in order, half a row; the
places are two bits for each, packed into the words that the lanes of a warp hand to `mma.sp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import DeviceError

__all__ = ["STEP", "check_two_of_four", "pack_two_of_four"]

STEP = 64
"""Inputs that one step of the kernel takes; rows are filled with zeros up to a multiple."""

_ROWS = 128  # places are laid out for so many outputs at a time, the largest tile


def check_two_of_four(weight: NDArray[Any], *, name: str) -> None:
    """Refuse a weight that keeps more than 2 of 4 consecutive inputs somewhere.

    Args:
        weight: (out_features, in_features).
        name: of the layer.

    Raises:
        DeviceError: naming the layer, the output and the inputs.
    """
    wrong = np.argwhere(np.count_nonzero(_groups(weight), axis=2) > 2)
    if len(wrong):
        row, group = map(int, wrong[0])
        last = min(4 * group + 3, weight.shape[1] - 1)
        kept = int(np.count_nonzero(weight[row, 4 * group : last + 1]))
        raise DeviceError(
            f"{name} must keep at most 2 of each 4 consecutive inputs (sparsity 2:4), got {kept} "
            f"in output {row}, inputs {4 * group} to {last}, and {len(wrong) - 1} such groups more"
        )


def pack_two_of_four(stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """Lay out a weight that `check_two_of_four` accepts.

    Args:
        stored: (out_features, in_features) of 16-bit numbers; zero is all bits zero but the sign.

    Returns:
        kept (out_features, 32 * num_steps) of the same type, and places
        (16-output blocks, num_steps, 32) uint32.
    """
    out_features, in_features = stored.shape
    num_steps = -(-in_features // STEP)
    wide = np.zeros((out_features, num_steps * STEP), stored.dtype)
    wide[:, :in_features] = stored
    groups = wide.reshape(out_features, -1, 4)
    zero = (groups.view(np.uint16) & 0x7FFF) == 0
    # A stable sort puts what is kept first, in order; zeros fill up to two.
    chosen = np.sort(np.argsort(zero, axis=2, kind="stable")[:, :, :2], axis=2)
    kept = np.take_along_axis(groups, chosen, axis=2).reshape(out_features, -1)
    nibbles = np.full((-(-out_features // _ROWS) * _ROWS, num_steps * 16), 0b0100, np.uint32)
    nibbles[:out_features] = chosen[:, :, 0] | chosen[:, :, 1] << 2
    # Four groups to 16 bits; the word of lane (g, t) holds rows g and g + 8 of inputs 16 t on.
    halves = (nibbles.reshape(-1, 4) << (4 * np.arange(4, dtype=np.uint32))).sum(axis=1)
    rows = halves.astype(np.uint32).reshape(-1, 2, 8, num_steps, 4)
    words = rows[:, 0] | rows[:, 1] << np.uint32(16)  # (block, g, step, t)
    places = words.transpose(0, 2, 1, 3).reshape(-1, num_steps, 32)
    return kept, np.ascontiguousarray(places)


def _groups(weight: NDArray[Any]) -> NDArray[Any]:
    out_features, in_features = weight.shape
    padded = np.zeros((out_features, -(-in_features // 4) * 4), np.bool_)
    padded[:, :in_features] = weight != 0
    return padded.reshape(out_features, -1, 4)
