"""pyarrow, which reads and writes Parquet and is installed only where someone wants that."""

from __future__ import annotations

from typing import Any

from minibert.errors import MissingDependencyError


def pyarrow() -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            'Parquet needs pyarrow: pip install "minibert-engine[parquet]"'
        ) from error
    return pa, pq
