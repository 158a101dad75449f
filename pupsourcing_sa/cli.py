"""The command ``pupsourcing-sa``: parse, load, call; nothing else."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import EventStore, EventTables, __version__
from pupsourcing_sa.errors import ImportFailed, PupsourcingError
from pupsourcing_sa.worker import Worker

__all__ = ["main"]


class UsageError(Exception):
    """What was asked for cannot be done as it was asked; the message says what to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 143 terminated."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.call(options)
    except UsageError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except PupsourcingError as error:
        return _complain(error, 1)
    except SQLAlchemyError as error:
        return _complain(getattr(error, "orig", None) or error, 1)
    return status


def _complain(what: object, status: int) -> int:
    print(f"pupsourcing-sa: {what}", file=sys.stderr)
    return status


# -- the commands ------------------------------------------------------------------------------------------------


def _worker(options: argparse.Namespace) -> int:
    worker = _load_worker(options.target)
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if options.drain:
        worker.drain()
    else:
        worker.run()
    return 0


def _load_worker(target: str) -> Worker:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{target!r} must be a module and an attribute, such as myapp.worker:worker")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as with `python -m`
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        raise UsageError(f"there is no module {error.name!r} in {here} or on the Python path") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UsageError(f"module {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, name)
    if not isinstance(found, Worker) and callable(found):
        found = found()
    if not isinstance(found, Worker):
        raise UsageError(f"{target} must be a Worker or a function that returns one, not {type(found).__name__}")
    return found


def _import(options: argparse.Namespace) -> int:
    from pupsourcing_sa.console import open_console
    from pupsourcing_sa.jsonlines import import_events

    console = open_console(to_stderr=True)
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    store = EventStore(
        EventTables(schema=options.schema, events=options.events, aggregate_heads=options.aggregate_heads)
    )
    engine = create_engine(_database_url(options))
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
            return _complain(
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


def _demo(options: argparse.Namespace) -> int:
    from pupsourcing_sa.console import open_console

    console = open_console()
    from pupsourcing_sa.demo.story import run_demo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
    try:
        is_right = run_demo(
            console,
            events=options.events,
            writers=options.writers,
            database_url=options.database_url,
            keep=options.keep,
        )
    except (ArgumentError, ValueError) as error:
        raise UsageError(error) from error
    except RuntimeError as error:
        return _complain(error, 1)
    return 0 if is_right else 1


def _database_url(options: argparse.Namespace) -> URL:
    given = options.database_url or os.environ.get("DATABASE_URL")
    if not given:
        raise UsageError("which database? Give --database-url, or set DATABASE_URL")
    try:
        return make_url(given)
    except ArgumentError as error:
        raise UsageError(f"--database-url or DATABASE_URL: {error}") from error


# -- the options -------------------------------------------------------------------------------------------------


def _count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n`{self.prog} --help` tells more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pupsourcing-sa",
        description="Event sourcing on PostgreSQL inside the application's own SQLAlchemy session.",
        epilog="Exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"pupsourcing-sa {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    worker = commands.add_parser(
        "worker",
        help="run consumers until SIGINT or SIGTERM",
        description="Run the consumers of a Worker until SIGINT or SIGTERM; running batches may finish first.",
    )
    worker.add_argument(
        "target",
        metavar="MODULE:ATTRIBUTE",
        help="a Worker or what returns one, as myapp.worker:worker",
    )
    worker.add_argument("--drain", action="store_true", help="process everything up to now, then return")
    worker.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    worker.set_defaults(call=_worker)

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
        "--batch-size", metavar="N", type=_count, default=1000, help="events in one transaction (default: %(default)s)"
    )
    importer.add_argument(
        "--from-line", metavar="N", type=_count, default=1, help="first line to read (default: %(default)s)"
    )
    importer.set_defaults(call=_import)

    demo = commands.add_parser(
        "demo",
        help="see it work, on a database that comes with it",
        description="Start PostgreSQL, migrate it with Alembic, register users and events in one transaction, have "
        "several processes append while a worker follows, and compare its read model with SQL over the log. "
        "Exits with 1 on any difference.",
    )
    demo.add_argument(
        "--events", metavar="N", type=_count, default=10_000, help="events to append under load (default: %(default)s)"
    )
    demo.add_argument("--writers", metavar="N", type=_count, default=4, help="writing processes (default: %(default)s)")
    demo.add_argument("--database-url", metavar="URL", help="use this server, in a schema that is removed afterwards")
    demo.add_argument("--keep", action="store_true", help="leave that schema in the database")
    demo.set_defaults(call=_demo)
    return parser
