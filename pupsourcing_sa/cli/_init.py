"""The command ``pupsourcing-sa init``."""

from __future__ import annotations

from typing import Final

import click

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.migrations import template_directory
from pupsourcing_sa.migrations.requirements import require_alembic

__all__ = ["init"]


_HELP: Final = """\
Create an Alembic environment that contains the event log.

DIRECTORY must be new or empty. As with 'alembic init', alembic.ini is written to the working directory. Set
DATABASE_URL before you run alembic.
"""


@click.command(
    cls=Command,
    help=_HELP,
    examples=[
        "pupsourcing-sa init migrations",
        "alembic revision --autogenerate -m 'event log'",
        "alembic upgrade head",
    ],
)
@click.argument("directory")
@option("--async", "is_async", is_flag=True, help="Use the template for an asyncio engine.")
def init(directory: str, is_async: bool) -> None:
    """Run the command."""
    require_alembic()
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    template = str(template_directory("async" if is_async else "sync"))
    try:
        command.init(Config("alembic.ini"), directory, template=template)
    except (CommandError, OSError) as error:
        raise UsageError(str(error)) from error
