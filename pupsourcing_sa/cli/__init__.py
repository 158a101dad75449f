"""The command ``pupsourcing-sa``: parse, load, call; nothing else. Each command is a module of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from sqlalchemy.exc import SQLAlchemyError

from pupsourcing_sa import __version__
from pupsourcing_sa.cli import _demo, _import, _migrations, _status, _worker
from pupsourcing_sa.cli._usage import UsageError, complain
from pupsourcing_sa.errors import PupsourcingError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status.

    Args:
        arguments: those of the process by default, whose end is then the command's own business.

    Returns:
        0 success, 1 failure, 2 wrong usage, 3 ``status``: something needs attention, 130 interrupted, 143 terminated.
    """
    options = _parser().parse_args(arguments)
    options.is_process = arguments is None
    try:
        status: int = options.call(options)
    except UsageError as error:
        return complain(error, 2)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except Exception as error:
        if not _says_it_all(error):
            raise
        return complain(getattr(error, "orig", None) or error, 1)
    return status


def _says_it_all(error: Exception) -> bool:
    """Whether the message is enough. What a handler raised needs its traceback, and has a note of its event."""
    is_known = isinstance(error, (PupsourcingError, SQLAlchemyError))
    is_of_server = hasattr(error, "sqlstate")  # SQLAlchemy 2.0 lets asyncpg's own through where it cannot connect
    return (is_known or is_of_server) and not hasattr(error, "__notes__")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n`{self.prog} --help` tells more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pupsourcing-sa",
        description="Event sourcing on PostgreSQL inside the application's own SQLAlchemy session.",
        epilog="`pupsourcing-sa COMMAND --help` tells more. Exit status: 0 success, 1 failure, 2 wrong usage, "
        "3 `status` found something, 130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"pupsourcing-sa {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for command in (_worker, _status, _migrations, _import, _demo):
        command.add_to(commands)
    return parser
