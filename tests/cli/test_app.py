from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import minibert
from minibert.cli import app
from minibert.cli.app import COMMANDS
from minibert.cli.values import Choice, FloatRange, IntRange, PathTo
from minibert.errors import ConfigError, DeviceError, DeviceOptionError, InputError, MinibertError

Run = Callable[..., Result]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(app, "get_command", lambda ctx, name: failing)


def test_help_and_version_need_no_arrays() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from minibert.cli import app\n"
        "for option in ('--help', '--version'): assert CliRunner().invoke(app, [option]).output\n"
        "assert not {'numpy', 'tokenizers', 'tqdm', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_that_begins_as_the_list_says(run: Run, command: str) -> None:
    assert COMMANDS[command] in run("--help").output
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"minibert {command}" in result.output.replace("app", "minibert")
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "\\b" not in result.output


def test_help_keeps_the_lines_of_examples(run: Run) -> None:
    assert "\n      minibert encode MODEL texts.txt -o vectors.npy\n" in run("--help").output
    assert "\n    null                     a null pointer\n" in run("emulate", "--help").output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["encode", "--help"]])
def test_help_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "minibert", *arguments]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"minibert: error: No space left on device\n"


def test_the_version_is_the_package_s(run: Run) -> None:
    assert run("--version").output == f"minibert, version {minibert.__version__}\n"


def test_an_unknown_command_is_wrong_usage(run: Run) -> None:
    assert run("train").exit_code == 2


def test_an_unknown_option_shows_the_usage(run: Run) -> None:
    for arguments in (("encode", "--bogus"), ("encode",), ("sparsify", "model", "out")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("Usage: ")
        assert "--help" in result.stderr


@pytest.mark.parametrize(
    ("command", "name", "value", "line"),
    [
        ("encode", "--batch-size", "0", "must be a whole number of at least 1, got '0'"),
        ("encode", "--batch-size", "x", "must be a whole number of at least 1, got 'x'"),
        ("encode", "--batch-size", "", "must be a whole number of at least 1, got ''"),
        ("encode", "--truncation", "no", "must be one of warn, error, silent, got 'no'"),
        ("explain", "--cache-folder", __file__, f"must be a folder, got '{__file__}'"),
        ("sparsify", "--sparsity", "1", "must be a number above 0 and below 1, got '1'"),
        ("sparsify", "--sparsity", "nan", "must be a number above 0 and below 1, got 'nan'"),
        ("prune", "--flops", "1.01", "must be a number above 0 and at most 1, got '1.01'"),
        ("prune", "--speedup", "inf", "must be a number of at least 1, got 'inf'"),
        ("distil", "--alpha", "-1", "must be a number of at least 0 and at most 1, got '-1'"),
        ("quantize", "--bits", "5", "must be one of 8, 4, got '5'"),
        ("emulate", "--grid", "0", "must be one to three numbers such as 4 or 8,2, got '0'"),
        ("emulate", "--seed", "-1", "must be a whole number of at least 0, got '-1'"),
        ("demo", "--top", "1.5", "must be a whole number of at least 1, got '1.5'"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(
    run: Run, command: str, name: str, value: str, line: str
) -> None:
    result = run(command, "model", name, value)
    assert result.stderr == f"minibert: error: {name} {line}\n"
    assert (result.exit_code, result.stdout) == (2, "")


def test_an_argument_that_cannot_be_used_is_one_line(run: Run) -> None:
    result = run("emulate", "none.cu")
    assert result.exit_code == 2
    assert result.stderr == ("minibert: error: FILE.cu must be a readable file, got 'none.cu'\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_type_that_refuses_values_tells_its_rule(command: str) -> None:
    with click.Context(app) as context:
        parameters = app.get_command(context, command).params  # type: ignore[attr-defined]
    takes_any = (type(click.STRING), type(click.BOOL), click.Path)
    for parameter in parameters:
        assert type(parameter.type) in (*takes_any, Choice, FloatRange, IntRange, PathTo), parameter
        assert type(parameter.type) is not click.Path or not parameter.type.exists


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x must be y,\n  got z"), 2, "x must be y, got z"),
        (ConfigError("bad"), 2, "bad"),
        (DeviceError("no device"), 1, "no device"),
        (DeviceOptionError("no such device"), 2, "no such device"),
        (MinibertError("other"), 2, "other"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (OSError(5, "Input/output error", "out.npy"), 1, "out.npy: Input/output error"),
        (OSError(28, "No space left on device", "from", None, "to"), 1, "to: No space left on"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero (--debug shows the traceba"),
        (KeyError(), 1, "KeyError"),
        (MemoryError(), 1, "MemoryError"),
    ],
)
def test_a_failure_is_one_line_and_a_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    fail_with(monkeypatch, error)
    result = run("encode")
    assert result.exit_code == code
    assert result.stderr.startswith(f"minibert: error: {line}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_debug_lets_the_exception_through(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = InputError("x must be y")
    fail_with(monkeypatch, error)
    assert run("--debug", "encode").exception is error


def test_debug_may_follow_the_command(run: Run, tmp_path: Path) -> None:
    result = run("explain", tmp_path / "none", "--debug")
    assert isinstance(result.exception, MinibertError)


def test_an_interrupt_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run("encode")
    assert (result.exit_code, result.output) == (130, "")


def test_a_signal_that_is_ignored_stays_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def hung_up() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        click.echo("still here")

    monkeypatch.setattr(app, "get_command", lambda ctx, name: hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        result = run("encode")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.exit_code, result.output) == (0, "still here\n")


@pytest.mark.parametrize(("value", "coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, value: str, coloured: bool) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    result = CliRunner().invoke(app, ["doctor"], color=True)
    assert ("\x1b[" in result.output) is coloured


def test_python_m_is_the_script() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minibert", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"minibert, version {minibert.__version__}\n"
