"""The command ``pupsourcing-sa status``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

import click

from pupsourcing_sa import EventStore, EventTables, WorkerTables
from pupsourcing_sa._checks import MAX_BIGINT, MAX_SECONDS
from pupsourcing_sa.cli._console import open_console, write
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    WORKER_TABLES,
    database_url_option,
    log_and_worker_tables,
    missing_tables_explained,
    open_engine_for,
    table_options,
    timeout_option,
)
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._values import seconds, whole_number
from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT, LAG_LIMIT, Status, read_status
from pupsourcing_sa.status.findings import StatusLimits, diagnose, notes

__all__ = ["status"]

_PROBLEMS_FOUND: Final = 3
_LIMITS: Final = StatusLimits()


_HELP: Final = """\
Show the nodes and consumers of a log, and report problems.

Problems come first, one line each. Failing and parked partitions, partitions without a running node, and checkpoints
ahead of the log are always reported. A consumer that was stopped in an orderly way while others run is only a note. The
tables show how far each partition is behind, what fails and which
transactions block it.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Show nodes, consumers, lag and problems.",
    examples=[
        "pupsourcing-sa status --database-url postgresql://localhost/shop",
        "pupsourcing-sa status --json --max-lag-seconds 60",
    ],
    exit_status={
        0: "no problems found",
        1: "the database cannot be reached or has no tables",
        2: "wrong usage",
        3: "problems found",
    },
)
@option("--json", "is_json", group="Output", is_flag=True, help="Print one JSON object.")
@option(
    "--max-lag-events",
    group="Problems to report",
    metavar="N",
    type=whole_number(0, MAX_BIGINT - 1),
    help="A partition that is more than N events behind.",
    default_text="not reported",
)
@option(
    "--max-lag-seconds",
    group="Problems to report",
    metavar="S",
    type=seconds(),
    help="A partition whose oldest unprocessed event is older than S seconds.",
    default_text="not reported",
)
@option(
    "--max-stall-seconds",
    group="Problems to report",
    metavar="S",
    type=seconds(),
    default=f"{_LIMITS.max_stall_seconds:g}",
    show_default=True,
    help="An open transaction that holds newer events back for more than S seconds.",
)
@option(
    "--max-lock-seconds",
    group="Problems to report",
    metavar="S",
    type=seconds(),
    default=f"{_LIMITS.max_lock_seconds:g}",
    show_default=True,
    help="A transaction that keeps a node from its partition for more than S seconds.",
)
@option(
    "--heartbeat-timeout",
    group="Problems to report",
    metavar="S",
    type=seconds(MAX_SECONDS),
    default=f"{HEARTBEAT_TIMEOUT:g}",
    show_default=True,
    help="A node that sent no heartbeat for S seconds. Use the setting of your workers.",
)
@timeout_option("Give up if the database does not answer within S seconds.")
@database_url_option
@table_options({**STORE_TABLES, **WORKER_TABLES})
def status(
    is_json: bool,
    max_lag_events: int | None,
    max_lag_seconds: float | None,
    max_stall_seconds: float,
    max_lock_seconds: float,
    heartbeat_timeout: float,
    timeout: float,
    database_url: str | None,
    schema: str | None,
    **names: str | None,
) -> int:
    """Run the command."""
    limits = StatusLimits(
        max_lag_events=max_lag_events,
        max_lag_seconds=max_lag_seconds,
        max_stall_seconds=max_stall_seconds,
        max_lock_seconds=max_lock_seconds,
    )
    console = None if is_json else open_console()
    found = _read(
        database_url,
        timeout,
        log_and_worker_tables(schema, names),
        heartbeat_timeout=heartbeat_timeout,
        lag_limit=max(LAG_LIMIT, max_lag_events or 0),
    )
    findings = diagnose(found, limits)
    if console is None:
        data = {"findings": [asdict(finding) for finding in findings], "notes": notes(found)} | found.to_dict()
        write(f"{json.dumps(data, indent=2)}\n")
    else:
        from pupsourcing_sa.cli._status_report import print_report

        with console.capture() as report:  # rich would end the process if the pipe is closed
            print_report(console, found, findings)
        write(report.get())
    return _PROBLEMS_FOUND if findings else 0


def _read(database_url: str | None, timeout: float, tables: tuple[EventTables, WorkerTables], **options: Any) -> Status:
    """Return the status from a database that answers within the timeout."""
    engine = open_engine_for(database_url, timeout)
    with engine.connect() as connection, missing_tables_explained():
        limit_transaction(connection, timeout, "statement_timeout")
        return read_status(connection, EventStore(tables[0]), tables[1], **options)
