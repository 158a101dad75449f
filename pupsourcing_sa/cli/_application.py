"""The group of all commands, and the exit status and message of each error."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click
from sqlalchemy.exc import SQLAlchemyError

from pupsourcing_sa import __version__
from pupsourcing_sa.cli._console import discard_output
from pupsourcing_sa.cli._consumers import consumers
from pupsourcing_sa.cli._demo import demo
from pupsourcing_sa.cli._doctor import doctor
from pupsourcing_sa.cli._errors import UsageError, fail, fail_of_usage
from pupsourcing_sa.cli._events import events
from pupsourcing_sa.cli._help import Group
from pupsourcing_sa.cli._import import import_
from pupsourcing_sa.cli._init import init
from pupsourcing_sa.cli._sql import sql
from pupsourcing_sa.cli._status import status
from pupsourcing_sa.cli._template_path import template_path
from pupsourcing_sa.cli._worker import worker
from pupsourcing_sa.errors import PupsourcingError

__all__ = ["application", "run"]

PROGRAM: Final = "pupsourcing-sa"

# Not a docstring, because ``python -OO`` removes docstrings. The other commands do the same.
_HELP: Final = """\
Event sourcing on PostgreSQL inside your application's SQLAlchemy session.

Run 'pupsourcing-sa COMMAND --help' for the options of a command.
"""


class Application(Group):
    """The command itself. click's test runner calls `main`."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command and exit with its status."""
        sys.exit(run(args or (), owns_process=False))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the ones with similar names."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            similar = difflib.get_close_matches(name, self.list_commands(ctx))
            hint = f"Did you mean {' or '.join(similar)}?" if similar else f"Choose from {', '.join(self.commands)}."
            ctx.fail(f"there is no command {name!r}. {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Application,
    help=_HELP,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    examples=[
        "pupsourcing-sa demo",
        "pupsourcing-sa init migrations",
        "pupsourcing-sa worker myapp.worker:worker --processes 4",
        "pupsourcing-sa status --database-url postgresql://localhost/shop",
    ],
    exit_status={
        0: "success",
        1: "failure",
        2: "wrong usage",
        3: "status found problems",
        130: "interrupted (SIGINT)",
        143: "terminated (SIGTERM)",
    },
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def application(context: click.Context) -> None:
    """Run a command."""
    if context.invoked_subcommand is None:
        context.fail("missing command")


for command in (worker, status, doctor, consumers, events, init, template_path, sql, import_, demo):
    application.add_command(command)


def run(arguments: Sequence[str], *, owns_process: bool) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: command line without the program's name.
        owns_process: True if the process ends with the command.
    """
    try:
        with application.make_context(PROGRAM, list(arguments), obj=owns_process) as context:
            exit_status: int | None = application.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        return fail_of_usage(error)
    except UsageError as error:
        return fail(error.message, error.exit_code, exception=error.exception)
    except click.ClickException as error:
        return fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError as error:
        if not _is_of_output(error):
            return _fail_with_traceback(error)
        discard_output()
        return 0
    except Exception as error:  # noqa: BLE001 - Python would print a traceback, too, but not in the log's format
        if not _is_explained_by_message(error):
            return _fail_with_traceback(error)
        return fail(getattr(error, "orig", None) or error, 1)
    return exit_status or 0


def _fail_with_traceback(error: Exception) -> int:
    return fail("".join(traceback.format_exception_only(error)).partition("\n")[0], 1, exception=error)


def _is_explained_by_message(error: Exception) -> bool:
    """Return True if the message is enough. An error of a handler, which has a note, needs its traceback."""
    is_known = isinstance(error, (PupsourcingError, SQLAlchemyError))
    # SQLAlchemy 2.0 does not wrap asyncpg's own error when it cannot connect.
    is_from_server = hasattr(error, "sqlstate")
    return (is_known or is_from_server) and not hasattr(error, "__notes__")


def _is_of_output(error: BrokenPipeError) -> bool:
    """Return True if printing failed, rather than a handler or a connection to the database."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    module = "" if frames is None else frames.tb_frame.f_globals.get("__name__", "")
    return module.startswith(("click.", "pupsourcing_sa.cli."))
