"""The command ``pupsourcing-sa events show``."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import click

from pupsourcing_sa import EventStore
from pupsourcing_sa._checks import MAX_BIGINT
from pupsourcing_sa.cli._console import write
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    database_url_option,
    existing_log,
    missing_tables_explained,
    open_engine_for,
    table_options,
    timeout_option,
)
from pupsourcing_sa.cli._errors import fail
from pupsourcing_sa.cli._event_text import event_as_json, json_text
from pupsourcing_sa.cli._help import Command
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.postgres.connections import limit_transaction

__all__ = ["show"]

_HELP: Final = """\
Show an event with all fields, as JSON.

EVENT is its position in the log, or its event_id. A payload that is not JSON is in payload_base64 instead of payload.
"""


def _position_or_id(text: str) -> int | UUID:
    if text.isdecimal() and 0 < int(text) <= MAX_BIGINT:
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        raise click.BadParameter(f"must be a position, such as 4711, or an event_id, not {text!r}") from None


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Show an event with all fields.",
    examples=[
        "pupsourcing-sa events show 4711",
        "pupsourcing-sa events show 01a20a18-a008-732d-b352-7e82f252c9da",
    ],
    exit_status={
        0: "success",
        1: "there is no such event, or the database cannot be reached",
        2: "wrong usage",
    },
)
@click.argument("event", metavar="EVENT", type=_position_or_id)
@timeout_option("Give up if the database does not answer within S seconds.")
@database_url_option
@table_options(STORE_TABLES)
def show(event: int | UUID, timeout: float, database_url: str | None, schema: str | None, **names: str | None) -> int:
    """Run the command."""
    engine = open_engine_for(database_url, timeout)
    with engine.connect() as connection, missing_tables_explained():
        limit_transaction(connection, timeout, "statement_timeout")
        reader = EventStore(existing_log(connection, schema, names)).reader
        if isinstance(event, UUID):
            found = reader.events_by_id(connection, [event])
        else:
            found = reader.page(connection, Scope(), event - 1, event, 1).events
        last = reader.last_position(connection)
    if not found:
        what = f"the id {event}" if isinstance(event, UUID) else f"the position {event}"
        return fail(f"no committed event has {what}; the last position is {last}", 1)
    write(f"{json_text(event_as_json(found[0]), indent=2)}\n")
    return 0
