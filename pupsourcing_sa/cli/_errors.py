"""Messages on standard error."""

from __future__ import annotations

import sys

import click
from click.core import ParameterSource

__all__ = ["UsageError", "fail", "usage_message"]


class UsageError(click.ClickException):
    """A mistake in the command line, the environment or the application. The message contains the remedy.

    A `click.UsageError` would also get a line that refers to ``--help``.
    """

    exit_code = 2


def fail(message: object, status: int) -> int:
    """Print why the command fails, and return its exit status."""
    print(f"pupsourcing-sa: {message}".rstrip(), file=sys.stderr)
    return status


def usage_message(error: click.UsageError) -> str:
    """Return the mistake that click found in the command line or an environment variable, and how to get help."""
    context = error.ctx
    if context is None:
        return error.message
    return f"{_problem(error, context).rstrip('.')}\nRun '{context.command_path} --help' for help."


def _problem(error: click.UsageError, context: click.Context) -> str:
    if isinstance(error, click.NoSuchOption):
        similar = f"; did you mean {' or '.join(error.possibilities)}?" if error.possibilities else ""
        return f"there is no option {error.option_name}{similar}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"missing argument {error.param.human_readable_name}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        # click's message for a boolean lists ten spellings, and an empty one first.
        message = "must be 0 or 1" if isinstance(error.param.type, click.types.BoolParamType) else error.message
        return f"{_source(error.param, context)}: {message}"
    return error.message


def _source(parameter: click.Parameter, context: click.Context) -> str:
    """Name the option, the argument or the environment variable that has the wrong value."""
    if context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT:
        return f"environment variable {parameter.envvar}"
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.human_readable_name
