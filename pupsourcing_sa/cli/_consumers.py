"""The commands ``pupsourcing-sa consumers …``: operations on consumers."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from typing import Final, TypeAlias

import click
from sqlalchemy import Connection

from pupsourcing_sa import EventStore
from pupsourcing_sa._checks import MAX_SECONDS
from pupsourcing_sa.cli._console import write
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    WORKER_TABLES,
    database_url_option,
    log_and_worker_tables,
    missing_tables_explained,
    open_engine_for,
    table_options,
    timeout_option,
    wrong_names_refused,
)
from pupsourcing_sa.cli._help import Command, Group, option
from pupsourcing_sa.cli._values import seconds
from pupsourcing_sa.operations import ConsumerOperations, OperationResult
from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT

__all__ = ["consumers"]

_Operation: TypeAlias = Callable[[ConsumerOperations, Connection, str], OperationResult]

_EXIT_STATUS: Final = {
    0: "success",
    1: "the operation is refused, or the database cannot be reached",
    2: "wrong usage",
}

_HELP: Final = """\
Operate on consumers: what the tables know about them, not their read models.

Each operation is one transaction. It waits for running batches of the consumer. The table consumer_operations records
it with its operator.
"""


@click.group(
    cls=Group,
    help=_HELP,
    short_help="Operate on consumers: remove, adopt-log.",
    subcommand_metavar="OPERATION NAME",
    examples=["pupsourcing-sa consumers remove balances --dry-run"],
    exit_status=_EXIT_STATUS,
)
def consumers() -> None:
    """Run an operation."""


def _operation(name: str, short_help: str, help_: str, run: _Operation) -> None:
    """Add the command of an operation."""

    @consumers.command(
        name,
        cls=Command,
        help=help_,
        short_help=short_help,
        examples=[f"pupsourcing-sa consumers {name} balances --dry-run"],
        exit_status=_EXIT_STATUS,
    )
    @click.argument("name", metavar="NAME")
    @option("--dry-run", group="Operation", is_flag=True, help="Show what would change, and roll back.")
    @option(
        "--actor",
        group="Operation",
        metavar="NAME",
        help="Operator to record in consumer_operations.",
        default_text="the operating system's user",
    )
    @option(
        "--heartbeat-timeout",
        group="Operation",
        metavar="S",
        type=seconds(MAX_SECONDS),
        default=f"{HEARTBEAT_TIMEOUT:g}",
        show_default=True,
        help="A node that sent no heartbeat for S seconds is not running. Use the setting of your workers.",
    )
    @option("--json", "is_json", group="Output", is_flag=True, help="Print one JSON object.")
    @timeout_option("Give up if a batch keeps its lock, or the database does not answer, for S seconds.")
    @database_url_option
    @table_options({**STORE_TABLES, **WORKER_TABLES})
    def command(
        name: str,
        dry_run: bool,
        actor: str | None,
        heartbeat_timeout: float,
        is_json: bool,
        timeout: float,
        database_url: str | None,
        schema: str | None,
        **names: str | None,
    ) -> None:
        log, workers = log_and_worker_tables(schema, names)
        with wrong_names_refused():
            operations = ConsumerOperations(
                workers, EventStore(log), actor=actor or getpass.getuser(), heartbeat_timeout=heartbeat_timeout
            )
        result = _run(database_url, timeout, lambda connection: run(operations, connection, name), dry_run=dry_run)
        if is_json:
            write(f"{json.dumps(result.to_dict() | {'dry_run': dry_run}, indent=2)}\n")
        else:
            write("".join(f"{line}\n" for line in _report(result, dry_run=dry_run)))


def _run(
    database_url: str | None, timeout: float, work: Callable[[Connection], OperationResult], *, dry_run: bool
) -> OperationResult:
    """Run an operation in a transaction of its own."""
    engine = open_engine_for(database_url, timeout)
    with engine.connect() as connection, missing_tables_explained():
        limit_transaction(connection, timeout, "lock_timeout", "statement_timeout")
        result = work(connection)
        if not dry_run:
            connection.commit()
    return result


def _report(result: OperationResult, *, dry_run: bool) -> list[str]:
    """Return the rows before and after, as lines for people."""
    outcome = "dry run, nothing was changed" if dry_run else "done"
    lines = [f"{result.operation.replace('_', '-')} {one_line(result.consumer)}: {outcome}"]
    for title, rows in (("before", result.before), ("after", result.after)):
        checkpoints = rows["checkpoints"]
        lines.append(f"{title}: {len(checkpoints)} checkpoints, {len(rows['assignments'])} assignments")
        for row in checkpoints:
            log = one_line(row["log"] or "unknown")
            lines.append(f"  partition {row['partition']}: position {row['last_position']:,}, log {log}")
    return lines


_operation(
    "adopt-log",
    "Let a consumer follow its log after the log was renamed.",
    """\
Let a consumer follow its log after the log, or its schema, was renamed.

A checkpoint belongs to one log. Workers refuse a consumer whose checkpoints belong to a log of another name. Name the
renamed log with --events and --schema. The command refuses if the former log still exists.
""",
    ConsumerOperations.adopt_log,
)
_operation(
    "remove",
    "Delete what the tables know about a consumer that is not needed any longer.",
    """\
Delete the checkpoints, assignments and parked aggregates of a consumer that was removed from the code.

The command refuses while a running node has the consumer. Drop its read model yourself. A worker that has the consumer
and starts later begins it at the start of the log.
""",
    ConsumerOperations.remove,
)
