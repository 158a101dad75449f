"""Messages on standard error: text, or a line of JSON if the log is JSON."""

from __future__ import annotations

import logging
import sys
import traceback

import click
from click.core import ParameterSource

from pupsourcing_sa.cli._logging import is_json_log
from pupsourcing_sa.printable import indented

__all__ = ["UsageError", "fail", "fail_of_usage"]

_logger = logging.getLogger("pupsourcing_sa.cli")


class UsageError(click.ClickException):
    """A mistake in the command line, the environment or the application. The message contains the remedy.

    A `click.UsageError` would also get a line that refers to ``--help``.

    Args:
        message: the mistake.
        exception: the exception of the application, whose traceback is shown as well.
    """

    exit_code = 2

    def __init__(self, message: str, exception: BaseException | None = None) -> None:
        super().__init__(message)
        self.exception = exception


def fail(message: object, status: int, *, hint: str = "", exception: BaseException | None = None) -> int:
    """Print why the command fails, and return its exit status.

    Args:
        message: the reason. It may quote data.
        status: the exit status.
        hint: lines of our own that follow the message.
        exception: an exception whose traceback is printed.
    """
    if is_json_log():
        details = {"error": str(message), "status": status} | ({"hint": hint} if hint else {})
        _logger.critical("command failed", exc_info=exception, extra=details)
        return status
    lines = [f"pupsourcing-sa: {indented(str(message))}".rstrip(), *([hint] if hint else [])]
    if exception is not None:
        lines.insert(0, indented("".join(traceback.format_exception(exception)).rstrip()))
    print("\n".join(lines), file=sys.stderr)
    return status


def fail_of_usage(error: click.UsageError) -> int:
    """Print the mistake that click found in the command line or an environment variable, and how to get help."""
    if error.ctx is None:
        return fail(error.message, error.exit_code)
    hint = f"Run '{error.ctx.command_path} --help' for help."
    return fail(_problem(error, error.ctx).rstrip("."), error.exit_code, hint=hint)


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
