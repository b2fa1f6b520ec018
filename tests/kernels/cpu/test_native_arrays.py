"""Arrays handed to the extension: read where they are, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.kernels.cpu import loader
from tests.cpu_encoder import needs_kernels

pytestmark = needs_kernels


def test_kernels_read_arrays_in_place_and_refuse_what_is_no_such_array() -> None:
    native = loader.native()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = np.zeros((2, 4), np.float32)
    native.copy_columns(out, 4, 1, values, 3, 2)
    np.testing.assert_array_equal(out, np.pad(values, ((0, 0), (1, 0))))
    native.copy_columns(out.ctypes.data, 4, 0, values.ctypes.data, 3, 2)  # an address is as good
    np.testing.assert_array_equal(out[:, :3], values)
    wrong: list[Any] = [
        values.astype(np.float64),
        values.astype(np.int32),
        values.astype(">f4"),
        np.zeros((2, 6), np.float32)[:, ::2],
    ]
    for array in wrong:
        with pytest.raises(TypeError, match="expected a C-contiguous array of float32"):
            native.copy_columns(out, 4, 0, array, 3, 2)
    with pytest.raises(AttributeError, match="__array_struct__"):
        native.copy_columns(out, 4, 0, [1.0], 3, 2)
    unaligned = np.frombuffer(bytearray(25), np.uint8)[1:].view(np.float32).reshape(2, 3)
    with pytest.raises(TypeError, match="expected a C-contiguous array of float32"):
        native.copy_columns(out, 4, 0, unaligned, 3, 2)
    values.flags.writeable = False
    native.copy_columns(out, 4, 0, values, 3, 2)  # it is only read
    out.flags.writeable = False
    with pytest.raises(TypeError, match="expected a C-contiguous, writeable array of float32"):
        native.copy_columns(out, 4, 0, values, 3, 2)
