"""BERT inference from scratch: pure arrays, own kernels, no deep-learning framework.

```python
from minibert import Engine

engine = Engine.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
vectors = engine.encode(["a text", "another"])
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibert.engine import Engine
    from minibert.precision import quantize_embeddings

__version__ = "0.1.0"
__all__ = ["Engine", "quantize_embeddings"]

_HOMES = {
    "Engine": "minibert.engine",
    "quantize_embeddings": "minibert.precision",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import minibert` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted([*globals(), *__all__])
