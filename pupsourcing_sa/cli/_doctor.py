"""The command ``pupsourcing-sa doctor``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import click
from click.core import ParameterSource
from sqlalchemy import Connection, event

from pupsourcing_sa.cli._console import open_console, write
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    WORKER_TABLES,
    database_url_option,
    log_and_worker_tables,
    open_engine_for,
    table_options,
    timeout_option,
)
from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._target import load_worker
from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store.server_checks import CheckResult, check_server
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = ["doctor"]

_HELP: Final = """\
Check that a server does what the log and its workers rely on.

MODULE:ATTRIBUTE is a Worker, or a function that returns one: the check uses its sessions and tables. Without it, name
the database and the tables as options. The check takes locks on one connection and looks for them on another. It writes
nothing. Workers do the same when they start.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Check the server, the tables and the log.",
    examples=[
        "pupsourcing-sa doctor myapp.worker:worker",
        "pupsourcing-sa doctor --database-url postgresql://localhost/shop --json",
    ],
    exit_status={
        0: "everything is as it must be",
        1: "a check failed, or the database cannot be reached",
        2: "wrong usage",
    },
)
@click.argument("target", metavar="[MODULE:ATTRIBUTE]", required=False)
@option("--json", "is_json", group="Output", is_flag=True, help="Print one JSON object.")
@timeout_option("Give up if the database does not answer within S seconds.")
@database_url_option
@table_options({**STORE_TABLES, **WORKER_TABLES})
@click.pass_context
def doctor(
    context: click.Context,
    /,
    target: str | None,
    is_json: bool,
    timeout: float,
    database_url: str | None,
    schema: str | None,
    **names: str | None,
) -> int:
    """Run the command."""
    if target is None:
        results = _check(database_url, timeout, *log_and_worker_tables(schema, names))
    else:
        _refuse_database_options(context)
        results = load_worker(target).check()
    if is_json:
        write(f"{json.dumps({'checks': [_as_dict(result) for result in results]}, indent=2)}\n")
    else:
        _print(results)
    return 1 if any(result.problem for result in results) else 0


def _refuse_database_options(context: click.Context) -> None:
    """Refuse options that name a database or tables, because the worker has its own."""
    for parameter in context.command.params:
        is_given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if is_given and getattr(parameter, "group", None) == "Database":
            raise UsageError(f"{parameter.opts[0]} does not apply to MODULE:ATTRIBUTE, which has its own database")


def _check(database_url: str | None, timeout: float, log: EventTables, workers: WorkerTables) -> list[CheckResult]:
    engine = open_engine_for(database_url, timeout)

    @event.listens_for(engine, "begin")
    def limit(connection: Connection) -> None:
        limit_transaction(connection, timeout, "statement_timeout")

    with engine.connect() as connection:
        return check_server(connection, EventStore(log).reader, workers)


def _as_dict(result: CheckResult) -> dict[str, Any]:
    message = None if result.problem is None else str(result.problem)
    return {"name": result.name, "status": _status(result), "message": message}


def _status(result: CheckResult) -> str:
    if result.is_skipped:
        return "skipped"
    return "ok" if result.problem is None else "failed"


def _print(results: Sequence[CheckResult]) -> None:
    from rich.text import Text

    console = open_console()
    with console.capture() as report:  # rich would end the process if the pipe is closed
        for result in results:
            problem = "" if result.problem is None else f": {one_line(str(result.problem))}"
            style = "bold red" if problem else ""
            console.print(Text(f"{_status(result):<8}{result.name}{problem}", style=style), soft_wrap=True)
    write(report.get())
