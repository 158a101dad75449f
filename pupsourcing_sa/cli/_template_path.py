"""The command ``pupsourcing-sa template-path``."""

from __future__ import annotations

from typing import Final

import click

from pupsourcing_sa.cli._console import write
from pupsourcing_sa.cli._help import Command
from pupsourcing_sa.cli._values import one_of
from pupsourcing_sa.migrations import template_directory

__all__ = ["template_path"]


_HELP: Final = """\
Print the directory of an Alembic template, for a synchronous or an asyncio engine.
"""


@click.command(
    "template-path",
    cls=Command,
    help=_HELP,
    short_help="Print the directory of an Alembic template.",
    examples=['alembic init -t "$(pupsourcing-sa template-path sync)" migrations'],
)
@click.argument("template", metavar="sync|async", type=one_of("sync", "async"))
def template_path(template: str) -> None:
    """Run the command."""
    write(f"{template_directory(template)}\n")
