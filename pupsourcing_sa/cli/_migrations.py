"""The commands ``pupsourcing-sa init``, ``template-path`` and ``sql``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import LargeBinary, MetaData
from sqlalchemy.dialects.postgresql import JSONB

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.cli._usage import UsageError, emit
from pupsourcing_sa.migrations import sql_script, template_directory
from pupsourcing_sa.migrations.requirements import require_alembic

__all__ = ["add_to"]

_PAYLOADS: Final = {"bytea": LargeBinary, "jsonb": JSONB}
#: The tables that have names of their own, and what each holds.
_STORE_TABLES: Final = {"events": "the log", "aggregate_heads": "the versions of aggregates"}
_WORKER_TABLES: Final = {
    "worker_nodes": "the running worker processes",
    "consumer_assignments": "who runs which consumer",
    "consumer_checkpoints": "how far consumers are",
}


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    init = commands.add_parser(
        "init",
        help="create an Alembic environment with the event log",
        description="Create an Alembic environment with the event log in it, as `alembic init` does: the directory, "
        "and alembic.ini in the current one. Set DATABASE_URL; then `alembic revision --autogenerate -m 'event log'` "
        "and `alembic upgrade head` create the tables.",
    )
    init.add_argument("directory", metavar="DIRECTORY", help="new or empty, such as migrations")
    init.add_argument(
        "--async",
        dest="template",
        action="store_const",
        const="async",
        default="sync",
        help="for an asyncio engine",
    )
    init.set_defaults(call=_init)

    template_path = commands.add_parser(
        "template-path",
        help="where the templates for Alembic are",
        description='Print the directory of a template for Alembic, as in `alembic init -t "$(pupsourcing-sa '
        'template-path sync)" migrations`.',
    )
    template_path.add_argument("template", choices=["sync", "async"], help="for a synchronous or an asyncio engine")
    template_path.set_defaults(call=_template_path)

    sql = commands.add_parser(
        "sql",
        help="print the tables as SQL, for those without Alembic",
        description="Print the DDL of the tables as a script for psql, which can be run again. Schemas have to exist.",
    )
    sql.add_argument("--schema", metavar="NAME", help="schema of the tables (default: the first of search_path)")
    for name, what in {**_STORE_TABLES, **_WORKER_TABLES}.items():
        option = f"--{name.replace('_', '-')}"
        sql.add_argument(option, metavar="NAME", help=f"table of {what} (default: {name})")
    sql.add_argument("--payload", choices=_PAYLOADS, help="type of payloads (default: bytea)")
    sql.add_argument("--guarded", action="store_true", default=None, help="with triggers that keep the log append-only")
    sql.add_argument(
        "--only", choices=["store", "worker"], help="the tables of the store, or of the worker (default: all)"
    )
    sql.set_defaults(call=_sql)


def _init(options: argparse.Namespace) -> int:
    require_alembic()
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    try:
        command.init(Config("alembic.ini"), options.directory, template=str(template_directory(options.template)))
    except (CommandError, OSError) as error:
        raise UsageError(error) from error
    return 0


def _template_path(options: argparse.Namespace) -> int:
    print(template_directory(options.template))
    return 0


def _sql(options: argparse.Namespace) -> int:
    def given(names: Iterable[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(options, name)) is not None}

    store, worker = given([*_STORE_TABLES, "payload", "guarded"]), given(_WORKER_TABLES)
    if unused := {"store": worker, "worker": store}.get(options.only):
        option = next(iter(unused)).replace("_", "-")
        raise UsageError(f"--{option} is about tables that --only {options.only} leaves out")
    if "payload" in store:
        store["payload"] = _PAYLOADS[store["payload"]]
    metadata = MetaData()
    tables: list[EventTables | WorkerTables] = []
    try:
        if options.only != "worker":
            tables.append(EventTables(metadata, schema=options.schema, **store))
        if options.only != "store":
            tables.append(WorkerTables(metadata, schema=options.schema, **worker))
    except ValueError as error:
        raise UsageError(error) from error
    emit(sql_script(*tables))
    return 0
