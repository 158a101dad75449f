"""The command ``pupsourcing-sa events check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import click
from click.core import ParameterSource
from sqlalchemy import Connection

from pupsourcing_sa import EventStore
from pupsourcing_sa.cli._console import open_console, open_progress, write
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    existing_log,
    missing_tables_explained,
    open_engine_for,
    table_options,
    timeout_option,
    transaction,
)
from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._snapshot_file import differences, lines, read_snapshot, registry_option
from pupsourcing_sa.cli._target import load_registry
from pupsourcing_sa.cli._values import whole_number
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store.log_check import LogCheck, StoredType

__all__ = ["check"]

_SAMPLE: Final = 100

_HELP: Final = """\
Check that your event classes can read stored events.

FILE is a snapshot that 'pupsourcing-sa events snapshot' wrote. The schemas in it are compared with the current classes,
and its payloads are decoded through the upcasters. Problems come first, with the field and the remedy. Notes, such as
about a field that was removed, do not change the exit status.

With --database-url, the classes are also compared with a log: all events are counted by type and version, and random
ones of each type and version are decoded. This reads the types of the whole log, or with --all all payloads. It does so
in short transactions, writes nothing, and may run on a standby. Events that cannot be read are listed with position and
event_id. No value of a payload is ever shown.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Check that event classes can read stored events.",
    examples=[
        "pupsourcing-sa events check --registry myapp.events:events events.json",
        "pupsourcing-sa events check --registry shop:events --database-url $STAGING",
    ],
    exit_status={
        0: "no problems found",
        1: "problems found, or the database cannot be reached",
        2: "wrong usage",
        130: "interrupted (SIGINT)",
    },
)
@click.argument("file", metavar="[FILE]", required=False)
@registry_option
@option(
    "--sample",
    group="Log",
    metavar="N",
    type=whole_number(1, 100_000),
    default=f"{_SAMPLE}",
    show_default=True,
    help="Decode N random events of each type and version.",
)
@option("--all", "is_all", group="Log", is_flag=True, help="Decode every event.")
@timeout_option("Give up if a statement takes longer than S seconds.")
@option(
    "--database-url",
    group="Database",
    metavar="URL",
    help="SQLAlchemy URL of the database with the log. DATABASE_URL is not used.",
    default_text="no log is read",
)
@table_options(STORE_TABLES)
@click.pass_context
def check(
    context: click.Context,
    /,
    file: str | None,
    registry: str,
    sample: int,
    is_all: bool,
    timeout: float,
    database_url: str | None,
    schema: str | None,
    **names: str | None,
) -> int:
    """Run the command."""
    if file is None and database_url is None:
        raise UsageError("name a FILE, the --database-url of a log, or both")
    if is_all and context.get_parameter_source("sample") is ParameterSource.COMMANDLINE:
        raise UsageError("--all decodes every event. Leave out --sample")
    events = load_registry(registry)
    problems, report = 0, []
    if file is not None:
        findings = differences(events, read_snapshot(file), file)
        problems += sum(finding.is_problem for finding in findings)
        report += lines(findings)
    if database_url is not None:
        with open_engine_for(database_url, timeout).connect() as connection, missing_tables_explained():
            with transaction(connection, timeout):
                log = EventStore(existing_log(connection, schema, names))
            types = _check_log(log, events, partial(transaction, connection, timeout), None if is_all else sample)
        problems += sum(stored.failed > 0 for stored in types)
        report += _report(types)
    report.append(f"failed: {problems:,} problems" if problems else "ok: no problems found")
    write("".join(f"{line}\n" for line in report))
    return 1 if problems else 0


def _check_log(
    store: EventStore,
    registry: EventRegistry,
    begin: Callable[[], AbstractContextManager[Connection]],
    sample: int | None,
) -> list[StoredType]:
    """Check a log, and show progress. Decode all events if there is no size of samples."""
    with open_progress(open_console(to_stderr=True)) as progress:
        bar = progress.add_task("reading the log", total=None)

        def on_progress(position: int, end: int) -> None:
            progress.update(bar, completed=position, total=end)

        check = LogCheck(store.reader, registry, begin, on_progress)
        return check.every() if sample is None else check.sample(sample)


def _report(types: Sequence[StoredType]) -> list[str]:
    """Return a line for each undecodable event, and one for each type and version."""
    problems, counts = [], [f"log: {sum(stored.count for stored in types):,} events"]
    for stored in types:
        title = f"{one_line(stored.event_type)} v{stored.event_version}"
        problems += [
            f"problem: {title} at position {event.position} ({event.event_id}): {one_line(event.problem)}"
            for event in stored.listed
        ]
        if stored.failed > len(stored.listed):
            problems.append(f"problem: {title}: {stored.failed - len(stored.listed):,} more events")
        line = f"  {title}: {stored.count:,} events"
        if stored.is_retired:
            line += ", retired"
        elif stored.is_readable:
            line += f", {stored.decoded:,} decoded"
        counts.append(line + (f", {stored.failed:,} failed" if stored.failed else ""))
    return [*problems, *counts]
