"""The commands ``pupsourcing-sa events …``: the events of a log, and the application's event classes."""

from __future__ import annotations

from typing import Final

import click

from pupsourcing_sa.cli._events_check import check
from pupsourcing_sa.cli._events_list import list_
from pupsourcing_sa.cli._events_show import show
from pupsourcing_sa.cli._events_snapshot import snapshot
from pupsourcing_sa.cli._help import Group

__all__ = ["events"]

_HELP: Final = """\
Look at the events of a log, and check that your event classes can read them.
"""


@click.group(
    cls=Group,
    help=_HELP,
    short_help="Look at events: list, show. Check event classes: snapshot, check.",
    subcommand_metavar="COMMAND [ARGS]...",
    examples=[
        "pupsourcing-sa events list --aggregate Order o1",
        "pupsourcing-sa events snapshot --registry myapp.events:events -o events.json",
        "pupsourcing-sa events check --registry myapp.events:events events.json",
    ],
    exit_status={0: "success", 1: "failure, or problems found", 2: "wrong usage", 130: "interrupted (SIGINT)"},
)
def events() -> None:
    """Run a command."""


for command in (list_, show, snapshot, check):
    events.add_command(command)
