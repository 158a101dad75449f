"""The options that name the database and its tables, and the engine for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, MetaData, NullPool, create_engine, inspect, make_url
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ArgumentError, NoSuchTableError

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import option
from pupsourcing_sa.cli._values import seconds
from pupsourcing_sa.errors import MissingExtraError, TablesMissingError
from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = [
    "STORE_TABLES",
    "WORKER_TABLES",
    "database_url_option",
    "existing_log",
    "given",
    "log_and_worker_tables",
    "missing_tables_explained",
    "open_engine",
    "open_engine_for",
    "parse_url",
    "table_options",
    "timeout_option",
    "transaction",
    "wrong_names_refused",
]

_GROUP: Final = "Database"

#: Contents of the tables by default name, which is also the keyword argument that sets another name.
STORE_TABLES: Final = {"events": "the event log", "aggregate_heads": "the current version of each aggregate"}
WORKER_TABLES: Final = {
    "worker_nodes": "the running worker processes",
    "consumer_assignments": "the node of each partition",
    "consumer_checkpoints": "the position and the failures of each partition",
    "consumer_parked_aggregates": "the aggregates that consumers pass over",
    "consumer_operations": "what operators did to consumers",
}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def database_url_option(function: _Function) -> _Function:
    """Add ``--database-url``."""
    return option(
        "--database-url",
        group=_GROUP,
        metavar="URL",
        envvar="DATABASE_URL",
        help="SQLAlchemy URL of the database. psycopg connects to it, even if the URL names another driver.",
        default_text="$DATABASE_URL",
    )(function)


def table_options(tables: Mapping[str, str]) -> Callable[[_Function], _Function]:
    """Add ``--schema``, and an option for the name of each table. A name that is not given is None."""

    def add(function: _Function) -> _Function:
        for name, content in reversed(list(tables.items())):
            function = option(
                f"--{name.replace('_', '-')}",
                group=_GROUP,
                metavar="NAME",
                help=f"Table of {content}.",
                default_text=name,
            )(function)
        return option(
            "--schema",
            group=_GROUP,
            metavar="NAME",
            help="Schema of the tables.",
            default_text="the database's search_path",
        )(function)

    return add


def timeout_option(help_: str) -> Callable[[_Function], _Function]:
    """Add ``--timeout``, in seconds."""
    return option("--timeout", group=_GROUP, metavar="S", type=seconds(), default="30", show_default=True, help=help_)


def given(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the options with these names that are not None."""
    return {name: options[name] for name in names if options[name] is not None}


def log_and_worker_tables(schema: str | None, names: Mapping[str, str | None]) -> tuple[EventTables, WorkerTables]:
    """Return the tables that the options name.

    Raises:
        UsageError: a name is invalid.
    """
    metadata = MetaData()
    with wrong_names_refused():
        return (
            EventTables(metadata, schema=schema, **given(names, STORE_TABLES)),
            WorkerTables(metadata, schema=schema, **given(names, WORKER_TABLES)),
        )


def existing_log(connection: Connection, schema: str | None, names: Mapping[str, str | None]) -> EventTables:
    """Return the log that the options name, with the type of payload that it has in the database.

    Raises:
        UsageError: a name is invalid.
    """
    with wrong_names_refused():
        tables = EventTables(schema=schema, **given(names, STORE_TABLES))
        try:
            columns = inspect(connection).get_columns(tables.events.name, schema)
        except NoSuchTableError:
            return tables  # the first statement reports it
        types = {column["name"]: column["type"] for column in columns}
        if isinstance(types.get("payload"), JSONB):
            return EventTables(schema=schema, payload=JSONB, **given(names, STORE_TABLES))
    return tables


@contextmanager
def transaction(connection: Connection, timeout: float) -> Iterator[Connection]:
    """Begin a transaction with a timeout in seconds for each statement. It ends with the block."""
    with connection.begin():
        limit_transaction(connection, timeout, "statement_timeout")
        yield connection


@contextmanager
def wrong_names_refused() -> Iterator[None]:
    """Report an invalid table name as wrong usage."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def missing_tables_explained() -> Iterator[None]:
    """Extend the message for missing tables: this command takes their names as options.

    Raises:
        TablesMissingError: with the longer message.
    """
    try:
        yield
    except TablesMissingError as error:
        raise TablesMissingError(f"{error}, and to this command as options, such as --schema") from error


def parse_url(text: str | None) -> URL:
    """Return the URL of the database, with psycopg as its driver.

    SQLAlchemy 2.0 uses psycopg2 for a plain ``postgresql://``, and an asynchronous driver needs an event loop.

    Raises:
        UsageError: no URL is given, or it is not a PostgreSQL URL.
    """
    if not text:
        raise UsageError("no database is given. Use --database-url, or set DATABASE_URL")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # ValueError if the port is not a number
        raise UsageError(f"--database-url or DATABASE_URL: {error}") from error
    if url.get_backend_name() != "postgresql":
        raise UsageError(f"--database-url or DATABASE_URL must be a postgresql URL, not {url.render_as_string()}")
    if url.drivername.endswith("+asyncpg") and "ssl" in url.query:
        url = url.update_query_dict({"sslmode": url.query["ssl"]}).difference_update_query(["ssl"])
    return url.set(drivername="postgresql+psycopg")


def open_engine_for(database_url: str | None, timeout: float) -> Engine:
    """Return the engine of a command: its connections are not pooled, and are made within the timeout.

    Args:
        database_url: the URL that the options name; see `parse_url`.
        timeout: seconds, unless the URL has a ``connect_timeout``.

    Raises:
        UsageError: as for `parse_url`.
        MissingExtraError: as for `open_engine`.
    """
    url = parse_url(database_url)
    connect = {} if "connect_timeout" in url.query else {"connect_timeout": math.ceil(timeout)}
    return open_engine(url, poolclass=NullPool, connect_args=connect, isolation_level="READ COMMITTED")


def open_engine(url: URL, **options: Any) -> Engine:
    """Return an engine for a URL of psycopg.

    Raises:
        MissingExtraError: psycopg is not installed.
    """
    try:
        return create_engine(url, **options)
    except ImportError as error:
        raise MissingExtraError("psycopg", "psycopg") from error
