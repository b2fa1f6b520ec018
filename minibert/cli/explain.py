"""`minibert explain MODEL`: print where every decision about a model came from."""

from __future__ import annotations

from typing import Any

import click

from minibert.cli.options import debug_option, engine_options


@click.command()
@click.argument("model")
@engine_options
@debug_option
def command(model: str, **engine_keywords: Any) -> None:
    """Show how MODEL is read and run, and where each decision came from.

    MODEL is a folder, or the name of a model on the hub.
    """
    from minibert.engine import Engine

    with Engine.from_pretrained(model, **engine_keywords) as engine:
        click.echo(engine.explain().rstrip("\n"))
