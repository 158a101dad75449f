"""The command ``pupsourcing-sa demo``."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from sqlalchemy.exc import ArgumentError

from pupsourcing_sa.cli._usage import UsageError, complain, count

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    demo = commands.add_parser(
        "demo",
        help="see it work, on a database that comes with it",
        description="Start PostgreSQL, migrate it with Alembic, register users and events in one transaction, have "
        "several processes append while a worker follows, and compare its read model with SQL over the log. "
        "Exits with 1 on any difference.",
    )
    demo.add_argument(
        "--events", metavar="N", type=count, default=10_000, help="events to append under load (default: %(default)s)"
    )
    demo.add_argument("--writers", metavar="N", type=count, default=4, help="writing processes (default: %(default)s)")
    demo.add_argument("--database-url", metavar="URL", help="use this server, in a schema that is removed afterwards")
    demo.add_argument("--keep", action="store_true", help="leave that schema in the database")
    demo.set_defaults(call=_demo)


def _demo(options: argparse.Namespace) -> int:
    from pupsourcing_sa.cli._console import open_console

    console = open_console()
    from pupsourcing_sa.demo.story import run_demo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
    try:
        is_right = run_demo(
            console,
            events=options.events,
            writers=options.writers,
            database_url=options.database_url,
            keep=options.keep,
        )
    except (ArgumentError, ValueError) as error:
        raise UsageError(error) from error
    except RuntimeError as error:
        return complain(error, 1)
    return 0 if is_right else 1
