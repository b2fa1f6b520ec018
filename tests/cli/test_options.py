from __future__ import annotations

import inspect
import io

import click
import pytest

from minibert import Engine
from minibert.cli.options import engine_options, progress_option


def test_engine_options_are_keywords_of_the_engine() -> None:
    command = click.Command("x", params=engine_options(lambda: None).__click_params__)
    keywords = set(inspect.signature(Engine.from_pretrained).parameters)
    assert {parameter.name for parameter in command.params} == keywords - {
        "path_or_name",  # the argument MODEL
        *("prompts", "default_prompt_name", "truncate_dim"),  # of `encode`, for its call
        "similarity_function",  # no command compares
        "float_layers",
        "token",  # never on a command line, where others can read it
    }


@pytest.mark.parametrize(("arguments", "shown"), [([], False), (["--progress"], True)])
def test_a_bar_is_shown_on_request_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], shown: bool
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    seen: list[bool] = []
    command = click.command()(progress_option(lambda progress: seen.append(progress)))
    command.main(arguments, standalone_mode=False)
    assert seen == [shown]
