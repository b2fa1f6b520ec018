"""The keys of config.json that the compressing commands write: quantization and sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minibert.errors import ConfigError, InputError
from minibert.weights.masks import PATTERNS, check_fraction
from minibert.weights.sparse_stored import Sparsity

METHOD = "minibert"
"""What `quant_method` and `sparse_method` must be: this engine's own forms."""


def read_quantization(values: Mapping[str, Any], source: str) -> Mapping[str, Any] | None:
    """`quantization_config` as `minibert quantize` writes it, or None.

    Raises:
        ConfigError: another method, an unknown key or a number of bits that is not read.
    """
    found = values.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        raise ConfigError(
            f"{source}: quantization_config must be absent or of quant_method 'minibert', as "
            f"`minibert quantize` writes it, got {found!r:.200}"
        )
    known = {"quant_method", "weight_bits", "embedding_bits", "float_layers", "migrated"}
    known |= {"static", "dynamic_layers"}
    unknown = sorted(set(found) - known)
    if unknown or found.get("weight_bits") not in (4, 8):
        raise ConfigError(
            f"{source}: quantization_config must have weight_bits 4 or 8 and no keys but "
            f"{sorted(known)}, got {found!r:.200}"
        )
    static, dynamic = found.get("static"), found.get("dynamic_layers", [])
    if "static" not in found:
        if "dynamic_layers" in found:
            raise ConfigError(f"{source}: dynamic_layers must come with static, which is missing")
        return found
    from minibert.weights.calibrate import METHODS  # not at every start of a process

    if static not in METHODS or found["weight_bits"] != 8:
        raise ConfigError(
            f"{source}: static must be one of {', '.join(METHODS)}, with weight_bits 8, got "
            f"{static!r} with {found['weight_bits']}"
        )
    if not isinstance(dynamic, list) or not all(isinstance(name, str) for name in dynamic):
        raise ConfigError(
            f"{source}: dynamic_layers must be a list of layers, got {dynamic!r:.200}"
        )
    return found


def read_sparsity(values: Mapping[str, Any], source: str) -> Sparsity | None:
    """`sparsity_config` as `minibert sparsify` writes it, or None.

    Raises:
        ConfigError: another method, an unknown key, pattern or fraction.
    """
    found = values.get("sparsity_config")
    if found is None:
        return None
    if not isinstance(found, dict) or found.get("sparse_method") != METHOD:
        raise ConfigError(
            f"{source}: sparsity_config must be absent or of sparse_method 'minibert', as "
            f"`minibert sparsify` writes it, got {found!r:.200}"
        )
    pattern, fraction = found.get("pattern"), found.get("fraction")
    if set(found) != {"sparse_method", "pattern", "fraction"} or pattern not in PATTERNS:
        raise ConfigError(
            f"{source}: sparsity_config must have a pattern, one of {', '.join(PATTERNS)}, a "
            f"fraction and no other key, got {found!r:.200}"
        )
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise ConfigError(f"{source}: sparsity_config must have a fraction, got {fraction!r}")
    try:
        check_fraction(pattern, fraction)
    except InputError as error:
        raise ConfigError(f"{source}: sparsity_config: {error}") from None
    return Sparsity(pattern, float(fraction))


def write_sparsity(sparsity: Sparsity) -> dict[str, Any]:
    """The key of config.json that `read_sparsity` reads."""
    return {
        "sparsity_config": {
            "sparse_method": METHOD,
            "pattern": sparsity.pattern,
            "fraction": sparsity.fraction,
        }
    }
