"""The command ``pupsourcing-sa import``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import EventStore, EventTables
from pupsourcing_sa.cli._usage import UsageError, complain, count, database_url, open_engine
from pupsourcing_sa.errors import ImportFailed

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    importer = commands.add_parser(
        "import",
        help="append events from JSON Lines",
        description="Append events from JSON Lines: one object for each event, with the fields of Event "
        "(aggregate_type, aggregate_id, event_type, payload; optionally event_version, event_id, metadata, "
        "trace_id, correlation_id, causation_id, created_at). A bad line is named; nothing of its batch is appended.",
    )
    importer.add_argument("file", metavar="FILE", help="a file of JSON Lines, or - for standard input")
    importer.add_argument("--database-url", metavar="URL", help="SQLAlchemy URL (default: $DATABASE_URL)")
    importer.add_argument("--schema", metavar="NAME", help="schema of the log (default: the database's search_path)")
    importer.add_argument("--events", metavar="NAME", default="events", help="table of the log (default: %(default)s)")
    importer.add_argument(
        "--aggregate-heads", metavar="NAME", default="aggregate_heads", help="table of the heads (default: %(default)s)"
    )
    importer.add_argument(
        "--batch-size", metavar="N", type=count, default=1000, help="events in one transaction (default: %(default)s)"
    )
    importer.add_argument(
        "--from-line", metavar="N", type=count, default=1, help="first line to read (default: %(default)s)"
    )
    importer.set_defaults(call=_import)


def _import(options: argparse.Namespace) -> int:
    from pupsourcing_sa.cli._console import open_console
    from pupsourcing_sa.jsonlines import import_events

    console = open_console(to_stderr=True)
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    store = EventStore(
        EventTables(schema=options.schema, events=options.events, aggregate_heads=options.aggregate_heads)
    )
    engine = open_engine(database_url(options))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    appended = 0
    with _open(options.file) as file, Progress(*columns, console=console) as progress:
        size = os.fstat(file.fileno()).st_size if options.file != "-" else None
        bar = progress.add_task("0 events", total=size)
        read = 0

        def lines() -> Any:
            nonlocal read
            for line in file:
                read += len(line)
                yield line

        def on_batch(_: int, events: int) -> None:
            nonlocal appended
            appended += events
            progress.update(bar, completed=read, description=f"{appended:,} events")

        try:
            import_events(
                sessionmaker(engine),
                store,
                lines(),
                batch_size=options.batch_size,
                first_line=options.from_line,
                on_batch=on_batch,
            )
        except ImportFailed as error:
            progress.stop()
            return complain(
                f"{error}\n{appended:,} events were appended, and nothing from line {error.first_line} on; "
                f"when it is mended, go on with --from-line {error.first_line}",
                1,
            )
    print(f"{appended:,} events appended")
    return 0


def _open(path: str) -> BinaryIO:
    if path == "-":
        return sys.stdin.buffer
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
