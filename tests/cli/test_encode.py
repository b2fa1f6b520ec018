from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from minibert.engine import Engine
from minibert.precision import quantize_embeddings

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[bytes]"]

TEXTS = ["the cat sat on the mat", "", "a dog", "bread stays soft in a paper bag", "zzz"]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.from_pretrained(tiny_model)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(text + "\n" for text in TEXTS))
    return path


def rows(jsonl: str | bytes) -> np.ndarray:
    return np.array([json.loads(line)["embedding"] for line in jsonl.splitlines()])


def error_line(result: Result) -> str:
    """The only line on stderr, where the command failed because of its input."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("minibert: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def in_a_shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run `minibert encode` as a shell does with `>&-` or the like behind it."""
    command = ["sh", "-c", f'"$0" -m minibert encode "$@" {redirection}', sys.executable]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, check=False)


def test_npy_holds_a_row_for_each_line(
    run: Run, engine: Engine, tiny_model: Path, lines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    result = run("encode", tiny_model, lines, "-o", out)
    assert (result.exit_code, result.output) == (0, "")
    assert np.array_equal(np.load(out), engine.encode(TEXTS))
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "out.npy"]


def test_chunks_change_nothing(run: Run, tiny_model: Path, lines: Path, tmp_path: Path) -> None:
    written = []
    for size in (1, 2, 100):
        out = tmp_path / f"{size}.npy"
        assert run("encode", tiny_model, lines, "-o", out, "--chunk-size", size).exit_code == 0
        written.append(np.load(out))
    np.testing.assert_allclose(written[0], written[2], rtol=0, atol=1e-6)  # BLAS picks by shape
    np.testing.assert_allclose(written[1], written[2], rtol=0, atol=1e-6)


def test_jsonl_goes_to_stdout(run: Run, engine: Engine, tiny_model: Path) -> None:
    result = run("encode", tiny_model, "--text", TEXTS[0], "--text", TEXTS[2], "--with-text")
    assert result.exit_code == 0
    found = rows(result.stdout).astype(np.float32)
    assert np.array_equal(found, engine.encode([TEXTS[0], TEXTS[2]]))
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == TEXTS[::2][:2]


def test_parquet_to_parquet(run: Run, engine: Engine, tiny_model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"body": TEXTS}), source)
    result = run("encode", tiny_model, source, "--field", "body", "-o", out, "--with-text")
    assert (result.exit_code, result.output) == (0, "")
    table = pq.read_table(out)
    assert table.column("text").to_pylist() == TEXTS
    found = np.array(table.column("embedding").to_pylist(), np.float32)
    assert np.array_equal(found, engine.encode(TEXTS))


@pytest.mark.parametrize("input_format", ["jsonl", "csv"])
def test_stdin_is_read_in_the_named_format(
    run: Run, engine: Engine, tiny_model: Path, input_format: str
) -> None:
    given = {"jsonl": '{"q": "a dog"}\n', "csv": "id,q\r\n7,a dog\r\n"}[input_format]
    options = ["-", "--input-format", input_format, "--field", "q"]
    result = run("encode", tiny_model, *options, input=given)
    assert result.exit_code == 0, result.output
    assert np.array_equal(rows(result.stdout).astype(np.float32)[0], engine.encode("a dog"))


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.filterwarnings("ignore:.*ranges come from")
def test_every_precision_is_that_of_the_whole_array(
    run: Run, engine: Engine, tiny_model: Path, lines: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "out.npy"
    options = ["--precision", precision, "--chunk-size", 2]
    assert run("encode", tiny_model, lines, "-o", out, *options).exit_code == 0
    chunks = list(engine.encode_stream(TEXTS, chunk_size=2))
    assert np.array_equal(np.load(out), quantize_embeddings(np.concatenate(chunks), precision))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "abacus"], "device must be one of auto, cpu, numpy, cuda"),
        (["--devices", "cuda:0,cpu"], "devices must all be cuda or emulator devices"),
        (["--device", "cpu", "--dtype", "float8"], "dtype must be one of float32, bfloat16"),
        (["--device", "numpy", "--dtype", "int8"], "dtype must be one of float32, float64"),
    ],
    ids=str,
)
def test_a_wrong_device_or_dtype_is_wrong_usage(
    run: Run, tiny_model: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = run("encode", tiny_model, "--text", "a", "-o", tmp_path / "out.npy", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not list(tmp_path.glob("out*"))


def test_options_reach_the_engine(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    options = ["--prompt", "the ", "--normalize", "--truncate-dim", 8, "--max-length", 6]
    options += ["--truncation", "silent", "--batch-size", 1, "--batch-tokens", 64, "--threads", 1]
    options += ["--memory-limit", "1GB", "--dtype", "float32", "--device", "cpu"]
    options += ["--packed-weights", tmp_path / "packed"]
    result = run("encode", tiny_model, "--text", TEXTS[3], "-o", out, *options)
    assert (result.exit_code, result.output) == (0, "")
    engine = Engine.from_pretrained(tiny_model, truncation="silent")
    expected = engine.encode(
        TEXTS[3:4], prompt="the ", normalize_embeddings=True, truncate_dim=8, max_length=6
    )
    np.testing.assert_allclose(np.load(out), expected, rtol=0, atol=1e-6)
    assert np.load(out).shape == (1, 8)
    assert list((tmp_path / "packed").iterdir())


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b""), ("a.csv", b"text\n"), ("a.jsonl", b"\n")]
)
@pytest.mark.parametrize("end", [".npy", ".jsonl", ".parquet"])
def test_no_texts_give_no_rows_and_a_warning(
    run: Run, tiny_model: Path, tmp_path: Path, name: str, content: bytes, end: str
) -> None:
    source, out = tmp_path / name, tmp_path / f"out{end}"
    source.write_bytes(content)
    result = run("encode", tiny_model, source, "-o", out)
    assert result.exit_code == 0
    assert result.stderr == "minibert: warning: there is no text in the input\n"
    if end == ".npy":
        assert np.load(out).shape == (0, 32)
    else:
        assert (pq.read_table(out).num_rows if end == ".parquet" else out.stat().st_size) == 0


def test_a_cut_text_is_one_warning(run: Run, tiny_model: Path, lines: Path) -> None:
    result = run("encode", tiny_model, lines, "--max-length", 4, "--chunk-size", 1)
    assert result.exit_code == 0
    assert result.stderr.startswith("minibert: warning: ")
    assert result.stderr.count("\n") == 1


def test_a_bad_line_leaves_no_file(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text('{"text": "a cat"}\n' * 9 + '{"txt": "a dog"}\n')
    result = run("encode", tiny_model, source, "-o", out, "--chunk-size", 2)
    assert "line 10: must have the field 'text', got 'txt'" in error_line(result)
    assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "none.txt"], "INPUT must be a readable file"),
        (["MODEL", "in.txt", "-o", "out.csv"], "output must end in one of"),
        (["MODEL", "in.txt", "-o", "none/out.npy"], "existing folder"),
        (["MODEL", "in.txt", "-o", "taken.npy"], "--overwrite"),
        (["MODEL", "in.jsonl", "-o", "in.jsonl", "--overwrite"], "another file than the input"),
        (["MODEL", "in.txt", "-o", "out.npy", "--with-text"], "vectors only"),
        (["MODEL", "in.txt", "--max-length", "4", "--truncation", "error"], "4"),
        (["MODEL", "in.txt", "--truncate-dim", "99"], "truncate_dim"),
        (
            ["MODEL", "in.txt", "--prompt-name", "q"],
            "must be one of ['document', 'query'], got 'q'",
        ),
        (["MODEL", "in.txt", "--prompt", "a", "--prompt-name", "q"], "--prompt must not come with"),
        (["MODEL", "in.txt", "--memory-limit", "much"], "memory_limit"),
        (["MODEL", "--text", "a cat", "--precision", "int8"], "must have two texts or more"),
        (["MODEL", "--text", "a\udcffcat"], "surrogate"),
        (["MODEL", "-", "in.txt", "-"], "standard input must be named once, got 2 times '-'"),
        (["none", "in.txt"], "none"),
        (["in.txt", "in.txt"], "in.txt"),
        (["empty", "in.txt"], "config.json"),
    ],
)
def test_what_the_user_can_mend_is_a_line_and_exit_code_2(
    run: Run,
    tiny_model: Path,
    lines: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(lines.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("taken.npy").write_bytes(b"old")
    Path("in.jsonl").write_text('{"text": "a cat"}\n')
    Path("empty").mkdir()
    before = sorted(os.listdir())
    arguments = [str(tiny_model) if word == "MODEL" else word for word in arguments]
    assert message in error_line(run("encode", *arguments))
    assert sorted(os.listdir()) == before
    assert Path("taken.npy").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "closed", "arguments"), [("input", "<&-", ["-"]), ("output", ">&-", ["--text", "a"])]
)
def test_a_closed_stream_is_named(
    tiny_model: Path, name: str, closed: str, arguments: list[str]
) -> None:
    done = in_a_shell(closed, tiny_model, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"minibert: error: standard {name} must be open".encode())


def test_a_file_needs_no_standard_output(tiny_model: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    done = in_a_shell(">&-", tiny_model, lines, "-o", out)
    assert (done.returncode, done.stderr) == (0, b"")
    assert np.load(out).shape == (5, 32)


@pytest.mark.parametrize("bar", [[], ["--progress"]], ids=str)
def test_without_standard_error_warnings_do_not_go_into_the_data(
    tiny_model: Path, lines: Path, bar: list[str]
) -> None:
    done = in_a_shell("2>&-", tiny_model, lines, "--max-length", 4, *bar)
    assert done.returncode == 0
    assert len(rows(done.stdout)) == 5


def test_overwrite_replaces(run: Run, tiny_model: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    out.write_bytes(b"old")
    assert run("encode", tiny_model, lines, "-o", out, "--overwrite").exit_code == 0
    assert np.load(out).shape == (5, 32)


@pytest.mark.parametrize("arguments", [[], ["--chunk-size", "0"], ["--input-format", "xml", "-"]])
def test_wrong_usage_is_exit_code_2(run: Run, tiny_model: Path, arguments: list[str]) -> None:
    assert run("encode", tiny_model, *arguments).exit_code == 2


def test_a_bar_shows_on_request(run: Run, tiny_model: Path, lines: Path, tmp_path: Path) -> None:
    result = run("encode", tiny_model, lines, "-o", tmp_path / "out.npy", "--progress")
    assert result.exit_code == 0
    assert "5 texts" in result.stderr
    assert "100%" in result.stderr


def feed(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Give texts until the partial file is there: the run is in its middle, and waits for more."""
    assert process.stdin is not None
    deadline = time.monotonic() + 60
    while not any(name.endswith(".partial") for name in os.listdir(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        process.stdin.write(b"the cat sat on the mat\n" * 4)
        process.stdin.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing(
    start: Start, tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    options = ["-", "-o", tmp_path / "out.npy", "--chunk-size", 2]
    process = start("encode", tiny_model, *options, stdin=subprocess.PIPE)
    feed(process, tmp_path)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr == b""
    assert os.listdir(tmp_path) == []


def test_a_kill_leaves_no_file_under_the_name(
    start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    options = ["-", "-o", tmp_path / "out.npy", "--chunk-size", 2]
    process = start("encode", tiny_model, *options, stdin=subprocess.PIPE)
    feed(process, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    left = os.listdir(tmp_path)
    assert len(left) == 1
    assert left[0].endswith(".partial")


def test_a_closed_pipe_ends_the_run_quietly(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("the cat sat on the mat\n" * 5000)
    process = start("encode", tiny_model, source, "--chunk-size", 10)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["index"] == 0
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE


def test_a_run_of_its_own_equals_the_library(
    start: Start, engine: Engine, tiny_model: Path, lines: Path
) -> None:
    stdout, stderr = start("encode", tiny_model, lines).communicate(timeout=60)
    assert stderr == b""
    assert np.array_equal(rows(io.BytesIO(stdout).read()).astype(np.float32), engine.encode(TEXTS))
