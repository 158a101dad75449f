"""The command ``pupsourcing-sa status``."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import MetaData, NullPool

from pupsourcing_sa import EventStore, EventTables, WorkerTables
from pupsourcing_sa.cli._usage import UsageError, database_url, emit, open_engine
from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT, LAG_LIMIT, Status, read_status
from pupsourcing_sa.status.findings import StatusLimits, diagnose

__all__ = ["add_to"]

_NEEDS_ATTENTION: Final = 3


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    status = commands.add_parser(
        "status",
        help="nodes, consumers, how far behind they are, and what fails",
        description="Show the worker's nodes and consumers, how far behind each partition is, what fails, and what "
        "locks a partition or holds the stable position back. What needs attention comes first, each in a line.",
        epilog="Exit status: 0 all is well, 1 cannot ask the database, 2 wrong usage, 3 something needs attention.",
    )
    status.add_argument("--json", action="store_true", help="print one JSON object")
    limits = status.add_argument_group("what needs attention, besides what fails and what no node runs")
    limits.add_argument("--max-lag-events", metavar="N", type=_number, help="a partition with more events to come to")
    limits.add_argument(
        "--max-lag-seconds", metavar="S", type=_seconds, help="a partition with an older one to come to"
    )
    limits.add_argument(
        "--max-stall-seconds",
        metavar="S",
        type=_seconds,
        default=StatusLimits().max_stall_seconds,
        help="a transaction that holds the stable position back for longer (default: %(default)g)",
    )
    limits.add_argument(
        "--max-lock-seconds",
        metavar="S",
        type=_seconds,
        default=StatusLimits().max_lock_seconds,
        help="a transaction that keeps a node from its partition for longer (default: %(default)g)",
    )
    limits.add_argument(
        "--heartbeat-timeout",
        metavar="S",
        type=_seconds,
        default=HEARTBEAT_TIMEOUT,
        help="a node that was silent for longer, as in the workers' configuration (default: %(default)g)",
    )
    database = status.add_argument_group("where to look")
    database.add_argument(
        "--database-url", metavar="URL", help="SQLAlchemy URL (default: $DATABASE_URL); psycopg is used for any driver"
    )
    database.add_argument(
        "--timeout", metavar="S", type=_seconds, default=30.0, help="give up after (default: %(default)g)"
    )
    database.add_argument("--schema", metavar="NAME", help="schema of the tables (default: the database's search_path)")
    for name in ("events", "aggregate_heads", "worker_nodes", "consumer_assignments", "consumer_checkpoints"):
        option = f"--{name.replace('_', '-')}"
        database.add_argument(option, metavar="NAME", default=name, help="name of the table (default: %(default)s)")
    status.set_defaults(call=_status)


def _status(options: argparse.Namespace) -> int:
    limits = StatusLimits(
        max_lag_events=options.max_lag_events,
        max_lag_seconds=options.max_lag_seconds,
        max_stall_seconds=options.max_stall_seconds,
        max_lock_seconds=options.max_lock_seconds,
    )
    if options.json:
        status = _ask(options)
        findings = diagnose(status, limits)
        found = {"findings": [asdict(finding) for finding in findings]} | status.to_dict()
        emit(f"{json.dumps(found, indent=2)}\n")
    else:
        from pupsourcing_sa.cli._console import open_console

        console = open_console()
        from pupsourcing_sa.cli._status_report import print_report

        status = _ask(options)
        findings = diagnose(status, limits)
        print_report(console, status, findings)
    return _NEEDS_ATTENTION if findings else 0


def _ask(options: argparse.Namespace) -> Status:
    """The status, from a database that answers in time or not at all."""
    metadata = MetaData()
    try:
        events = EventTables(
            metadata, schema=options.schema, events=options.events, aggregate_heads=options.aggregate_heads
        )
        tables = WorkerTables(
            metadata,
            schema=options.schema,
            worker_nodes=options.worker_nodes,
            consumer_assignments=options.consumer_assignments,
            consumer_checkpoints=options.consumer_checkpoints,
        )
    except ValueError as error:
        raise UsageError(error) from error
    url = database_url(options)
    connect = {} if "connect_timeout" in url.query else {"connect_timeout": math.ceil(options.timeout)}
    engine = open_engine(url, poolclass=NullPool, connect_args=connect)
    with engine.connect() as connection:
        limit_transaction(connection, options.timeout, "statement_timeout")
        return read_status(
            connection,
            EventStore(events),
            tables,
            heartbeat_timeout=options.heartbeat_timeout,
            lag_limit=max(LAG_LIMIT, options.max_lag_events or 0),
        )


def _number(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {value!r}")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds greater than 0, not {value!r}")
    return seconds
