from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minibert.cli.readers import TextReader, find_source
from minibert.cli.writers import output_format
from minibert.errors import MissingDependencyError


def test_without_pyarrow_reading_and_writing_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    for use in (
        lambda: list(TextReader((), [find_source(str(path), None)])),
        lambda: output_format(path),
    ):
        with pytest.raises(MissingDependencyError, match=r"minibert-engine\[parquet\]"):
            use()
