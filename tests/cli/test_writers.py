from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from minibert.cli.calibrated import CalibratedWriter
from minibert.cli.writers import (
    JsonlWriter,
    NpyWriter,
    ParquetWriter,
    open_writer,
    output_format,
)
from minibert.errors import InputError
from minibert.precision import quantize_embeddings


def vectors(num_rows: int, dimension: int = 7) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((num_rows, dimension))
    return (values * np.float64(10) ** np.arange(-3, dimension - 3)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
@pytest.mark.parametrize("cuts", [[], [0], [5], [2, 2, 1], [100_003]])
def test_npy_is_what_numpy_reads(dtype: type, cuts: list[int]) -> None:
    file = io.BytesIO()
    writer = NpyWriter(file, np.dtype(dtype), 3)
    chunks = [np.full((cut, 3), number + 1, dtype) for number, cut in enumerate(cuts)]
    for chunk in chunks:
        writer.write(chunk, [""] * len(chunk))
    writer.finish()
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    assert array.dtype == dtype
    assert np.array_equal(array, np.concatenate([np.empty((0, 3), dtype), *chunks]))


def test_jsonl_gives_every_float32_back() -> None:
    expected, file = vectors(50), io.BytesIO()
    writer = JsonlWriter(file, with_text=True)
    writer.write(expected[:20], ['"é"\n\0'] * 20)
    writer.write(expected[20:], [""] * 30)
    writer.finish()
    rows = [json.loads(line) for line in file.getvalue().decode().splitlines()]
    assert [row["index"] for row in rows] == list(range(50))
    assert rows[3]["text"] == '"é"\n\0'
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), expected)


def test_parquet_holds_fixed_size_lists(tmp_path: Path) -> None:
    expected, path = vectors(5), tmp_path / "out.parquet"
    with path.open("wb") as file:
        writer = ParquetWriter(file, np.dtype(np.float32), 7, with_text=True)
        writer.write(expected[:2], ["a", "b"])
        writer.write(expected[2:], ["c", "d", "e"])
        writer.finish()
        writer.close()
    table = pq.read_table(path)
    assert table.column("text").to_pylist() == list("abcde")
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), np.float32), expected)
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list")


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_stream_is_quantized_like_one_array(tmp_path: Path, precision: str) -> None:
    expected, file = vectors(9000), io.BytesIO()
    dtype = np.dtype(precision)
    writer = CalibratedWriter(
        JsonlWriter(file, with_text=True), precision, 7, tmp_path, with_text=True
    )
    for start in range(0, 9000, 1000):
        writer.write(expected[start : start + 1000], [f"{start}\n"] * 1000)
    writer.finish()
    writer.close()
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    found = np.array([row["embedding"] for row in rows], dtype)
    assert np.array_equal(found, quantize_embeddings(expected, precision))
    assert [row["text"] for row in rows[999:1001]] == ["0\n", "1000\n"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [".npy", ".jsonl", ".parquet"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_texts_that_no_row_carries_are_not_looked_at(end: str, calibrated: bool) -> None:
    unread: Any = None
    file, dtype = io.BytesIO(), np.dtype(np.int8 if calibrated else np.float32)
    writer = open_writer(file, output_format(Path(end[1:] + end)), dtype, 7, with_text=False)
    if calibrated:
        writer = CalibratedWriter(writer, "int8", 7, None, with_text=False)
    writer.write(vectors(3), unread)
    writer.finish()
    writer.close()


def test_one_vector_has_no_ranges() -> None:
    jsonl = JsonlWriter(io.BytesIO(), with_text=False)
    writer = CalibratedWriter(jsonl, "int8", 7, None, with_text=False)
    writer.write(vectors(1), ["a"])
    with pytest.raises(InputError, match="int8"):
        writer.finish()
    writer.close()


def test_the_ending_names_the_format() -> None:
    assert [output_format(Path(f"x{end}")) for end in (".npy", ".JSONL", ".parquet")] == [
        "npy",
        "jsonl",
        "parquet",
    ]
    with pytest.raises(InputError, match="must end in one of"):
        output_format(Path("x.csv"))
