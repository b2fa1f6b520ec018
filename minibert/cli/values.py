"""Types of options and arguments, whose errors say `must <rule>, got <value>` as all others do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # generic since a later version of click than the oldest that will do
    _ParamType = click.ParamType[Any]
    _Choice = click.Choice[str]
else:
    _ParamType = click.ParamType
    _Choice = click.Choice


class _Ruled(_ParamType):
    """A type that says what is allowed, and not only what is wrong."""

    def rule(self) -> str:
        """What a value must do, such as `be a whole number of at least 1`."""
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value; an error gives the rule and the value."""
        try:
            converted = super().convert(value, param, ctx)
            if isinstance(converted, float) and not math.isfinite(converted):
                raise click.BadParameter("no range holds it")
        except click.BadParameter as error:
            raise click.BadParameter(f"must {self.rule()}, got {value!r}", ctx, param) from error
        return converted


class IntRange(_Ruled, click.IntRange):
    """Whole numbers of a range."""

    def rule(self) -> str:
        """What a value must do."""
        return f"be a whole number {_limits(self)}"


class FloatRange(_Ruled, click.FloatRange):
    """Finite numbers of a range."""

    def rule(self) -> str:
        """What a value must do."""
        return f"be a number {_limits(self)}"


class Choice(_Ruled, _Choice):
    """One of several words."""

    def rule(self) -> str:
        """What a value must do."""
        return f"be one of {', '.join(self.choices)}"


class PathTo(_Ruled, click.Path):
    """A path to a file or to a folder."""

    def rule(self) -> str:
        """What a value must do."""
        return "be a readable file" if self.file_okay else "be a folder"


def _limits(numbers: click.IntRange | click.FloatRange) -> str:
    """The ends of a range in words, such as `above 0 and at most 1`."""
    words = []
    if numbers.min is not None:
        words.append(f"{'above' if numbers.min_open else 'of at least'} {numbers.min:g}")
    if numbers.max is not None:
        words.append(f"{'below' if numbers.max_open else 'at most'} {numbers.max:g}")
    return " and ".join(words)


def value_error(error: click.ClickException) -> str | None:
    """The line about a value that cannot be used; None for every other mistake of usage."""
    if not isinstance(error, click.BadParameter) or isinstance(error, click.MissingParameter):
        return None
    if error.param is None:
        return None
    if isinstance(error.param, click.Option):
        name = max(error.param.opts, key=len)
    else:
        name = error.param.human_readable_name
    return f"{name} {error.message}"
