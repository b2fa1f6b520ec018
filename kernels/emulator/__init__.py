"""Interprets the PTX of CUDA kernels on machines without a GPU, checks them and counts.

```python
from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import Module

module = Module(compile_ptx(source, name="kernel.cu").text)
module.get_function("kernel")((blocks,), (threads,), (out, x, np.int32(n)))
```
"""

from __future__ import annotations

from minibert.kernels.emulator.counters import LaunchCounters
from minibert.kernels.emulator.device_memory import device_address, device_array
from minibert.kernels.emulator.faults import (
    EmulatorError,
    KernelFault,
    LaunchError,
    Location,
    UnsupportedError,
)
from minibert.kernels.emulator.launch import Kernel, Module

__all__ = [
    "EmulatorError",
    "Kernel",
    "KernelFault",
    "LaunchCounters",
    "LaunchError",
    "Location",
    "Module",
    "UnsupportedError",
    "device_address",
    "device_array",
]
