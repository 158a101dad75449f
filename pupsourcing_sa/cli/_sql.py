"""The command ``pupsourcing-sa sql``."""

from __future__ import annotations

from typing import Final

import click
from sqlalchemy import LargeBinary, MetaData
from sqlalchemy.dialects.postgresql import JSONB

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.cli._console import write
from pupsourcing_sa.cli._database import STORE_TABLES, WORKER_TABLES, given, table_options, wrong_names_refused
from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._values import one_of
from pupsourcing_sa.migrations import sql_script

__all__ = ["sql"]

_PAYLOADS: Final = {"bytea": LargeBinary, "jsonb": JSONB}


_HELP: Final = """\
Print the tables as a SQL script for psql.

You can run the script more than once. The schemas must exist.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Print the tables as SQL, for databases without Alembic.",
    examples=["pupsourcing-sa sql --guarded | psql shop"],
)
@option(
    "--only",
    group="Content",
    metavar="store|worker",
    type=one_of("store", "worker"),
    help="Print only the tables of the store, or of the worker.",
    default_text="all",
)
@option(
    "--payload",
    group="Content",
    metavar="bytea|jsonb",
    type=one_of(*_PAYLOADS),
    help="Type of the payload column.",
    default_text="bytea",
)
@option("--guarded", group="Content", is_flag=True, help="Add triggers that protect the log from other programs.")
@table_options({**STORE_TABLES, **WORKER_TABLES})
def sql(schema: str | None, only: str | None, payload: str | None, guarded: bool, **names: str | None) -> None:
    """Run the command."""
    worker = given(names, WORKER_TABLES)
    store = given({**names, "payload": payload, "guarded": guarded or None}, [*STORE_TABLES, "payload", "guarded"])
    unused = {"store": worker, "worker": store}.get(only or "")
    if unused:
        option = next(iter(unused)).replace("_", "-")
        raise UsageError(f"--{option} applies to tables that --only {only} leaves out. Remove one of the two")
    if payload is not None:
        store["payload"] = _PAYLOADS[payload]
    metadata = MetaData()
    tables: list[EventTables | WorkerTables] = []
    with wrong_names_refused():
        if only != "worker":
            tables.append(EventTables(metadata, schema=schema, **store))
        if only != "store":
            tables.append(WorkerTables(metadata, schema=schema, **worker))
    write(sql_script(*tables))
