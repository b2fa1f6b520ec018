from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minibert.cli.readers import Source, TextReader, find_source
from minibert.errors import InputError


def read(path: Path, input_format: str | None = None, field: str = "text") -> list[str]:
    return list(TextReader(sources=[find_source(str(path), input_format)], field_name=field))


def file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"one", ["one"]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        (b"one\n\n  two \n", ["one", "", "  two "]),
        (b"a\x00b\n", ["a\x00b"]),
        (b"a\rb\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8c\n", ["a\rb\x0b\x0c\x1c\x85\u2028c"]),
        ("Grüße 你好 🙂\n".encode(), ["Grüße 你好 🙂"]),
    ],
)
def test_each_line_is_a_text(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    assert read(file(tmp_path, "in.txt", content)) == texts


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b'{"text": "one"}\n\n{"text": "two"}', ["one", "two"]),
        (b'\xef\xbb\xbf{"text": "one", "id": 3}\r\n', ["one"]),
        (b'{"text": "a\\u0000\\nb"}\n', ["a\x00\nb"]),
        (b'{"text": ""}\n', [""]),
    ],
)
def test_each_json_object_is_a_text(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    assert read(file(tmp_path, "in.jsonl", content)) == texts


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"text\n", []),
        (b"id,text\n1,one\n2,two\n", ["one", "two"]),
        (b"\xef\xbb\xbftext\r\none\r\n\r\ntwo\r\n", ["one", "two"]),
        (b'id,text\n1,"a ""quoted"", one"\n2,"two\nlines"\n', ['a "quoted", one', "two\nlines"]),
        (b"text,id\n,1\n", [""]),
        (b"id,text\n1,one,,\n", ["one"]),  # as spreadsheets leave them
    ],
)
def test_each_csv_row_is_a_text(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    assert read(file(tmp_path, "in.csv", content)) == texts


def test_a_csv_cell_may_be_long(tmp_path: Path) -> None:
    assert read(file(tmp_path, "in.csv", b"text\n" + b"x" * 300_000)) == ["x" * 300_000]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_each_parquet_row_is_a_text(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "in.parquet"
    texts = [f"text {number}" for number in range(3000)]
    pq.write_table(pa.table({"id": range(3000), "body": pa.array(texts, kind)}), path)
    assert read(path, field="body") == texts


def test_a_parquet_dictionary_column_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), path)
    assert read(path) == ["a", "b", "a"]


def test_gzip_is_read_through(tmp_path: Path) -> None:
    path = file(tmp_path, "in.jsonl.gz", gzip.compress(b'{"text": "one"}\n'))
    assert read(path) == ["one"]


def test_sources_and_literals_keep_their_order_and_count_bytes(tmp_path: Path) -> None:
    first, second = file(tmp_path, "a.txt", b"2\n3\n"), file(tmp_path, "b", b"4\n")
    sources = [find_source(str(path), None) for path in (first, second)]
    reader = TextReader(["1"], sources)
    assert list(reader) == ["1", "2", "3", "4"]
    assert reader.done_bytes == reader.total_bytes == 6


def test_a_pipe_has_no_size() -> None:
    assert TextReader(sources=[find_source("-", None), Source("x", "lines", 3)]).total_bytes is None


def test_a_file_called_standard_input_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path, "standard input", b"from the file\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"from the pipe\n")))
    assert read(Path("standard input"), "lines") == ["from the file"]
    assert read(Path("-")) == ["from the pipe"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.txt", b"fine\nb\xffd\n", "must be UTF-8, got byte 0xff on line 2 at column 2"),
        ("in.txt", "utf-16".encode("utf-16"), "must be UTF-8, got byte 0xff on line 1"),
        ("in.jsonl", b'{"text": "one"}\n{"text": "tw\n', "line 2: must be a JSON object, got inv"),
        ("in.jsonl", b'\n\n["one"]\n', "line 3: must be a JSON object, got an array"),
        ("in.jsonl", b'{"body": "one"}', "line 1: must have the field 'text', got 'body'; --field"),
        ("in.jsonl", b"{}", "line 1: must have the field 'text', got none"),
        ("in.jsonl", b'{"text": null}', "field 'text' must be a string, got null"),
        ("in.jsonl", b'{"text": 3}', "field 'text' must be a string, got a number"),
        ("in.jsonl", b'{"text": true}', "field 'text' must be a string, got a boolean"),
        ("in.jsonl", b'{"text": "\\ud83d"}', "line 1: must be valid Unicode, got the lone surr"),
        ("in.jsonl", b"[" * 100_000, "line 1: must be a JSON object, got"),
        ("in.csv", b"id,body\n1,one\n", "line 1: the header must have the field 'text' once, got"),
        ("in.csv", b"text,text\n1,one\n", "line 1: the header must have the field 'text' once"),
        ("in.csv", b"id,text\n1,one\n2\n", "line 3: must have the field 'text' in column 2, got"),
        ("in.csv", b"text\nwell, yes\n", "line 2: must have as many fields as the header, 1, got"),
        ("in.csv", b'text\n"never closed\n', "line 2: must be CSV, got"),
        ("in.parquet", b"no parquet", "must be a readable Parquet file, got"),
        ("in.parquet", b"", "must be a readable Parquet file, got"),
        ("in.txt.gz", b"no gzip", "must be a whole gzip file, got"),
        ("in.txt.gz", gzip.compress(b"one\n" * 99, mtime=0)[:-9], "must be a whole gzip file, got"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(InputError) as error:
        read(file(tmp_path, name, content))
    assert message in str(error.value)
    assert name in str(error.value)


def test_texts_before_a_bad_line_are_yielded_first(tmp_path: Path) -> None:
    path = file(tmp_path, "in.jsonl", b'{"text": "one"}\n{}\n')
    reader = iter(TextReader(sources=[find_source(str(path), None)]))
    assert next(reader) == "one"
    with pytest.raises(InputError, match="line 2"):
        next(reader)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a", None]), "row 2: column 'text' must be a string, got null"),
        (pa.array([1, 2]), "column 'text' must hold strings, got int64"),
    ],
)
def test_a_parquet_column_must_hold_strings(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(InputError, match=message):
        read(path)


def test_a_missing_parquet_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)
    with pytest.raises(InputError, match="must have the column 'text' once, got 'body'"):
        read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        find_source(str(tmp_path / "none.txt"), None)
    with pytest.raises(InputError, match="got a folder"):
        find_source(str(tmp_path), None)
    with pytest.raises(InputError, match="null"):
        find_source("a\0b", None)


def test_an_unknown_ending_asks_for_a_format(tmp_path: Path) -> None:
    path = file(tmp_path, "in.json", json.dumps({"text": "one"}).encode())
    with pytest.raises(InputError, match="--input-format"):
        find_source(str(path), None)
    assert read(path, "jsonl") == ["one"]
