"""The command ``pupsourcing-sa import``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click
from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import EventStore, EventTables
from pupsourcing_sa.cli._console import open_console, open_progress
from pupsourcing_sa.cli._database import (
    STORE_TABLES,
    database_url_option,
    given,
    missing_tables_explained,
    open_engine,
    parse_url,
    table_options,
    wrong_names_refused,
)
from pupsourcing_sa.cli._errors import UsageError, fail
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._interruption import Interrupted, InterruptibleReader
from pupsourcing_sa.cli._values import whole_number
from pupsourcing_sa.errors import ImportFailed
from pupsourcing_sa.jsonlines import import_events

__all__ = ["import_"]


_HELP: Final = """\
Append events from JSON Lines. FILE is a file, or - for standard input.

Each line is a JSON object with the fields of an Event: aggregate_type, aggregate_id, event_type and payload are
required; event_version, event_id, metadata, trace_id, correlation_id, causation_id and created_at are optional.

A bad line ends the import, and no event of its batch is appended. The message names the line. Ctrl-C ends the import
after the current batch. Each message says with which line to continue.
"""


@click.command(
    "import",
    cls=Command,
    help=_HELP,
    short_help="Append events from a file of JSON Lines.",
    examples=["pupsourcing-sa import events.jsonl", "zcat events.jsonl.gz | pupsourcing-sa import -"],
    exit_status={
        0: "every event was appended",
        1: "failure; earlier batches are appended",
        2: "wrong usage",
        130: "interrupted (SIGINT)",
        143: "terminated (SIGTERM)",
    },
)
@click.argument("file")
@option(
    "--batch-size",
    group="Import",
    metavar="N",
    type=whole_number(),
    default="5000",
    help="Events in one transaction.",
    show_default=True,
)
@option(
    "--from-line",
    group="Import",
    metavar="N",
    type=whole_number(),
    default="1",
    help="First line to read, to continue a failed import.",
    show_default=True,
)
@database_url_option
@table_options(STORE_TABLES)
def import_(
    file: str,
    batch_size: int,
    from_line: int,
    database_url: str | None,
    schema: str | None,
    **names: str | None,
) -> int:
    """Run the command."""
    console = open_console(to_stderr=True)
    with wrong_names_refused():
        tables = EventTables(schema=schema, **given(names, STORE_TABLES))
    engine = open_engine(parse_url(database_url))
    appended = read = 0
    next_line, is_committing = from_line, False

    @event.listens_for(engine, "commit")
    def note_commit(_: Connection) -> None:
        nonlocal is_committing
        is_committing = True

    with (
        missing_tables_explained(),
        _open(file) as opened,
        InterruptibleReader() as reader,
        open_progress(console) as progress,
    ):
        size = os.fstat(opened.fileno()).st_size if file != "-" else None
        bar = progress.add_task("0 events", total=size)

        def lines() -> Iterator[bytes]:
            nonlocal read
            for line in reader.read(opened):
                read += len(line)
                yield line

        def on_batch(last_line: int, events_in_batch: int) -> None:
            nonlocal appended, next_line, is_committing
            appended += events_in_batch
            next_line, is_committing = last_line + 1, False
            progress.update(bar, completed=read, description=f"{appended:,} events")

        try:
            import_events(
                sessionmaker(engine),
                EventStore(tables),
                lines(),
                batch_size=batch_size,
                first_line=from_line,
                on_batch=on_batch,
            )
        except ImportFailed as error:
            progress.stop()
            hint = (
                f"{appended:,} events were appended, and none from line {error.first_line} on. "
                f"Correct the line, then continue with --from-line {error.first_line}"
            )
            return fail(error, 1, hint=hint)
        except Interrupted as error:
            progress.stop()
            reason = "interrupted" if error.number == signal.SIGINT else "terminated"
            hint = _how_to_continue(appended, next_line, is_committing)
            return fail(reason, 128 + error.number, hint=hint)
        except (SQLAlchemyError, OSError) as error:
            progress.stop()
            if not appended and not is_committing:
                raise
            cause = getattr(error, "orig", None) or error
            return fail(cause, 1, hint=_how_to_continue(appended, next_line, is_committing))
        finally:
            engine.dispose()
    print(f"{appended:,} events appended")
    return 0


def _how_to_continue(appended: int, next_line: int, is_committing: bool) -> str:
    """Return how to continue an import that ended between two batches, or in the middle of one."""
    done = f"{appended:,} events were appended"
    if is_committing:
        return (
            f"{done}, and the batch that begins with line {next_line} may be in the log or not. Search the log for an "
            f"event of it. If there is none, continue with --from-line {next_line}"
        )
    return f"{done}, and none from line {next_line} on. Continue with --from-line {next_line}"


def _open(path: str) -> BinaryIO:
    if path == "-":
        return sys.stdin.buffer
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
