"""Find a race in a CUDA kernel without a GPU, then look at the repaired kernel's counters.

python examples/find_a_race.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minibert.kernels.emulator.run import emulate_file

SOURCE = Path(__file__).with_suffix(".cu")


def main() -> None:
    """Run the kernel twice: with the bug, and repaired."""
    args = ("float32[4]", "float32[1024]=random", "int32:1000")
    broken = emulate_file(SOURCE, "block_sum", 4, 256, args)
    print(broken.report())
    print()

    repaired = emulate_file(SOURCE, "block_sum", 4, 256, args, options=("-DREPAIRED",))
    print(repaired.report())
    sums, values, n = repaired.args
    expected = np.where(np.arange(1024) < n, values, 0).reshape(4, 256).sum(axis=1)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


if __name__ == "__main__":
    main()
