"""The exceptions of minibert, one tree.

```
MinibertError
├── CheckpointError (ValueError)     a model folder cannot be used as it is
│   ├── ConfigError                  config.json and the other JSON files
│   ├── WeightsError                 safetensors files and the tensors in them
│   └── TokenizerError               tokenizer files
├── ModelNotFoundError (OSError)     no such folder, or not in the cache, or no network
├── InputError (ValueError)          an argument or a text that a call cannot take
│   └── TruncationError              a text is longer than allowed, and truncation is an error
├── MemoryLimitError (MemoryError)   one text alone would pass `memory_limit`
├── DeviceError (RuntimeError)       a device or its kernels are missing or failed
│   ├── DeviceMemoryError            the device has no room for a batch
│   └── DeviceOptionError (InputError)  a device, or an option of one, that no machine has
├── MissingDependencyError (ImportError)  an optional package is needed
└── EngineClosedError (RuntimeError) the engine was closed
```

Messages read `<name> must <rule>, got <value>` and then say what to do.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "DeviceMemoryError",
    "DeviceOptionError",
    "EngineClosedError",
    "InputError",
    "MemoryLimitError",
    "MinibertError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "TokenizerError",
    "TruncationError",
    "TruncationWarning",
    "WeightsError",
]


class MinibertError(Exception):
    """Base of every exception that minibert raises on purpose."""


class CheckpointError(MinibertError, ValueError):
    """A model folder cannot be used as it is."""


class ConfigError(CheckpointError):
    """A JSON file of the checkpoint is missing, malformed or asks for something unsupported."""


class WeightsError(CheckpointError):
    """A tensor file is missing, damaged or does not fit the configuration."""


class TokenizerError(CheckpointError):
    """The tokenizer files are missing, damaged or unsupported."""


class ModelNotFoundError(MinibertError, OSError):
    """The name is neither a folder nor a cached or downloadable model."""


class InputError(MinibertError, ValueError):
    """An argument of a call is outside what the call accepts."""


class TruncationError(InputError):
    """A text has more tokens than `max_length` and the engine was told not to truncate."""


class MemoryLimitError(MinibertError, MemoryError):
    """A single text needs more memory than `memory_limit` allows."""


class DeviceError(MinibertError, RuntimeError):
    """The device, its driver or its kernels are missing or failed."""


class DeviceMemoryError(DeviceError):
    """The device has no room for a batch; the engine splits it and tries again."""


class DeviceOptionError(DeviceError, InputError):
    """A device's name, or an option of a device, is none that minibert knows."""


class MissingDependencyError(MinibertError, ImportError):
    """An optional package is needed for what was asked."""


class EngineClosedError(MinibertError, RuntimeError):
    """The engine was closed and cannot be used any more."""


class TruncationWarning(UserWarning):
    """Texts were cut to `max_length` tokens."""
