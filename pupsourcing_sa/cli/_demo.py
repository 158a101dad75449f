"""The command ``pupsourcing-sa demo``."""

from __future__ import annotations

import signal
import sys
from typing import Final

import click
from sqlalchemy.exc import ArgumentError

from pupsourcing_sa.cli._console import open_console
from pupsourcing_sa.cli._errors import UsageError, fail
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._values import whole_number

__all__ = ["demo"]


_HELP: Final = """\
Show the library at work, and check the result.

The demo starts PostgreSQL and creates the tables with Alembic. It registers users and their events in one transaction.
Then several processes append events while two worker nodes update a read model, and one of the nodes is killed.
At the end the demo compares the read model with a query of the log. All this takes a minute or two.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Show the library at work, on its own database.",
    examples=["pupsourcing-sa demo", "pupsourcing-sa demo --events 100000 --writers 8"],
    exit_status={
        0: "the read model agrees with the log",
        1: "the read model is wrong, or the demo failed",
        2: "wrong usage",
    },
)
@option(
    "--events",
    group="Load",
    metavar="N",
    type=whole_number(),
    default="10000",
    help="Events to append under load.",
    show_default=True,
)
@option(
    "--writers",
    group="Load",
    metavar="N",
    type=whole_number(),
    default="4",
    help="Processes that append them.",
    show_default=True,
)
@option(
    "--database-url",
    group="Database",
    metavar="URL",
    help="Use this PostgreSQL server, in a schema that is dropped afterwards.",
    default_text="start a server",
)
@option("--keep", group="Database", is_flag=True, help="Keep that schema.")
def demo(events: int, writers: int, database_url: str | None, keep: bool) -> int:
    """Run the command."""
    console = open_console()
    from pupsourcing_sa.demo.story import run_demo

    # Clean up after SIGTERM as after Ctrl-C.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        is_correct = run_demo(console, events=events, writers=writers, database_url=database_url, keep=keep)
    except (ArgumentError, ValueError) as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        return fail(error, 1)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0 if is_correct else 1
