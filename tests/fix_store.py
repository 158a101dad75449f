"""The store in every variant that users have: what the session is, and how the tables are named.

A test of the store takes ``log``, begins transactions with it, and runs once for each variant: for two every day, for
all twelve in ``make test-all``. The asynchronous ones run on an event loop of the test's own, one call after the
other, so that the same test serves them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pupsourcing_sa import AsyncEventStore, Event, EventStore, EventTables
from tests.fix_postgres import new_schema
from tests.prepared_schemas import prepare
from tests.waiting import wait_until

__all__ = ["Log", "Transaction", "make_event"]

NAMES: dict[str, dict[str, str]] = {
    "default": {},
    "custom": {"schema": "Müller's %(shop)s", "events": "the.events", "aggregate_heads": 'heads "x"'},
}

SESSIONS: dict[str, tuple[type[Any], str]] = {
    "session": (Session, "psycopg"),
    "connection": (Connection, "psycopg"),
    "async-session": (AsyncSession, "psycopg"),
    "async-connection": (AsyncConnection, "psycopg"),
    "asyncpg-session": (AsyncSession, "asyncpg"),
    "asyncpg-connection": (AsyncConnection, "asyncpg"),
}


#: The kind of session, and how the tables are named. The first two meet every value of every axis: Session and
#: Connection, psycopg and asyncpg, sync and async, default and custom names. They run every day.
VARIANTS: list[tuple[str, str]] = [("session", "default"), ("asyncpg-connection", "custom")]
VARIANTS += [pair for pair in product(SESSIONS, NAMES) if pair not in VARIANTS]


def make_event(aggregate_id: str = "u1", **given: Any) -> Event:
    """An event of the aggregate User ``aggregate_id``; everything else has a default."""
    values = {"aggregate_type": "User", "event_type": "UserRegistered", "payload": {"email": "ann@example.org"}}
    return Event(**values | {"aggregate_id": aggregate_id} | given)


class Transaction:
    """A transaction of one variant, with the store's methods; the asynchronous ones are run to their end."""

    def __init__(self, store: Any, session: Any, run: Callable[[Any], Any]) -> None:
        self.session = session
        self._store = store
        self._run = run

    def __getattr__(self, method: str) -> Callable[..., Any]:
        bound = getattr(self._store, method)
        return lambda *args, **kw: self._run(bound(self.session, *args, **kw))

    def execute(self, sql: str, **parameters: Any) -> list[Any]:
        result = self._run(self.session.execute(text(sql), parameters))
        return list(result.all()) if result.returns_rows else []

    def commit(self) -> None:
        self._run(self.session.commit())

    def rollback(self) -> None:
        self._run(self.session.rollback())

    @contextmanager
    def savepoint(self) -> Iterator[Any]:
        nested = self._run(self.session.begin_nested())
        try:
            yield nested
        except BaseException:
            self._run(nested.rollback())
            raise
        else:
            if nested.is_active:
                self._run(nested.commit())

    def close(self) -> None:
        self._run(self.session.close())


class Log:
    """A store in one variant, its tables created."""

    def __init__(self, engine: Engine, tables: EventTables, kind: str, **options: Any) -> None:
        self.engine = engine
        self.tables = tables
        session_class, driver = SESSIONS[kind]
        self._open: list[Transaction] = []
        self._runner: asyncio.Runner | None = None
        self._session_class = session_class
        if session_class in (AsyncSession, AsyncConnection):
            self._runner = asyncio.Runner()
            self._async_engine: AsyncEngine = make_async_engine(engine, driver)
            self.store: Any = AsyncEventStore(tables, **options)
        else:
            self.store = EventStore(tables, **options)

    def begin(self, **options: Any) -> Transaction:
        """A new transaction on a connection of its own."""
        run: Callable[[Any], Any] = self._await if self._runner else lambda value: value
        if self._session_class is Session:
            session: Any = Session(self.engine, **options)
        elif self._session_class is Connection:
            session = self.engine.connect()
        elif self._session_class is AsyncSession:
            session = AsyncSession(self._async_engine, **options)
        else:
            session = self._await(self._async_engine.connect())
        transaction = Transaction(self.store, session, run)
        self._open.append(transaction)
        return transaction

    def heads(self) -> dict[str, int]:
        """The version of each aggregate, by its id."""
        with self.engine.connect() as connection:
            rows = connection.execute(self.tables.aggregate_heads.select())
            return {row.aggregate_id: row.aggregate_version for row in rows}

    def close(self) -> None:
        for transaction in self._open:
            transaction.close()
        if self._runner:
            self._await(self._async_engine.dispose())
            self._runner.close()

    def _await(self, awaitable: Any) -> Any:
        assert self._runner is not None

        async def main() -> Any:
            return await awaitable

        return (
            self._runner.run(main())
            if isinstance(awaitable, Coroutine) or hasattr(awaitable, "__await__")
            else awaitable
        )


def make_async_engine(engine: Engine, driver: str = "psycopg") -> AsyncEngine:
    """An asynchronous engine that connects to the same place as a synchronous one."""
    url = engine.url.set(drivername=f"postgresql+{driver}")
    if driver != "asyncpg":
        return create_async_engine(url)
    options = str(url.query.get("options", "")).removeprefix("-c")
    settings = dict([options.split("=", 1)]) if options else {}
    return create_async_engine(url.difference_update_query(["options"]), connect_args={"server_settings": settings})


def make_tables(engine: Engine, **names: str) -> EventTables:
    """The log's tables, created in the database."""
    tables = EventTables(MetaData(), **names)
    if "schema" in names:
        tables.metadata.create_all(engine)
    else:
        prepare(engine, ("events", *sorted(names.items())), lambda: tables.metadata.create_all(engine))
    return tables


def make_named_tables(engine: Engine, names: str, **options: Any) -> EventTables:
    """The log's tables with names of `NAMES`, created in the database with the schema that they are in."""
    given = NAMES[names]
    tables = EventTables(MetaData(), **given, **options)
    kind = ("events", names, *options.items())
    prepare(engine, kind, lambda: tables.metadata.create_all(engine), schema=given.get("schema"))
    return tables


@contextmanager
def tenant(engine: Engine, tables: EventTables) -> Iterator[str]:
    """A schema with the tables, for a ``schema_translate_map``, and with a name that needs quotes."""
    name = f'Tenant "%(x)s" {uuid4().hex}'
    with new_schema(engine, name):
        translate = {tables.events.schema: name}
        tables.metadata.create_all(engine.execution_options(schema_translate_map=translate))
        yield name


def ids(store: EventStore, session: Any, **scope: Any) -> list[str]:
    """The aggregates of the events that are read, in the log's order."""
    return [event.aggregate_id for event in store.read_events(session, **scope)]


def wait_until_blocked(engine: Engine, pid: int) -> None:
    """Wait until a backend waits for another one."""
    blocked = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")
    with engine.connect() as connection:
        wait_until(lambda: connection.scalar(blocked, {"pid": pid}))


@pytest.fixture
def store(engine: Engine) -> EventStore:
    """A store with the default names."""
    return EventStore(make_tables(engine))


@pytest.fixture(
    params=[
        pytest.param(variant, id="-".join(variant), marks=pytest.mark.exhaustive if number > 1 else ())
        for number, variant in enumerate(VARIANTS)
    ]
)
def log(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Log]:
    session, names = request.param
    log = Log(engine, make_named_tables(engine, names), session)
    yield log
    log.close()


@pytest.fixture
def plain_log(engine: Engine) -> Iterator[Log]:
    """The log in its most ordinary variant: a Session, default names."""
    log = Log(engine, make_tables(engine), "session")
    yield log
    log.close()
