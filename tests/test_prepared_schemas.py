"""The isolation of tests that share schemas and databases: each case would change the next test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, NoStream
from tests.fix_postgres import DatabasePool, open_database
from tests.fix_store import make_event, make_named_tables, make_tables
from tests.prepared_schemas import LeftBehindError, SchemaPool


@pytest.fixture(scope="module")
def pool(server: Engine) -> Iterator[SchemaPool]:
    with open_database(server, pool_pre_ping=True) as database:
        yield SchemaPool(database)


def log_oid(pool: SchemaPool, *statements: str) -> int:
    """Be a test that appends an event and executes some statements. Return the oid of its log."""
    lease = pool.lease()
    try:
        store = EventStore(make_tables(lease.engine))
        with Session(lease.engine) as session:
            assert store.append(session, NoStream(), [make_event()]).global_positions == (1,)
            session.commit()
            oid = session.scalar(text("SELECT CAST('events' AS regclass)::oid"))
        with lease.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        lease.give_back()
    assert oid is not None
    return oid


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT",
        "DELETE FROM events",
        "SELECT setval(pg_get_serial_sequence('events', 'global_position'), 500)",
        "ALTER TABLE events ALTER COLUMN global_position RESTART WITH 5",
        "INSERT INTO aggregate_heads SELECT 'User', n::text, 1 FROM generate_series(1, 5000) AS n",  # is truncated
    ],
)
def test_rows_are_deleted_and_the_tables_stay(pool: SchemaPool, statement: str):
    assert log_oid(pool, statement) == log_oid(pool)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (id int)",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE more AS ENUM ('a')",
        "ALTER TABLE events ADD CHECK (event_version < 9)",
        "ALTER TABLE events ADD COLUMN more int",
        "ALTER TABLE events ALTER COLUMN global_position SET START WITH 5",
        "ALTER TABLE events SET (autovacuum_enabled = off)",
        "ALTER TABLE events ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON events TO PUBLIC",
        "DROP INDEX events_correlation_id_global_position_idx",
        "CREATE RULE more AS ON DELETE TO events DO INSTEAD NOTHING",
        "ANALYZE events",
    ],
)
def test_altered_tables_are_created_again(pool: SchemaPool, statement: str):
    assert log_oid(pool, statement) != log_oid(pool)


def test_a_schema_of_its_own_name_and_another(pool: SchemaPool):
    for _ in range(2):
        lease = pool.lease()
        tables = make_named_tables(lease.engine, "custom")
        with lease.engine.begin() as connection:
            assert EventStore(tables).append(connection, NoStream(), [make_event()]).global_positions == (1,)
        lease.give_back()


@pytest.mark.parametrize(
    ("statement", "is_committed", "what"),
    [
        ("SELECT 1", False, "transaction of backend"),
        ("SELECT pg_advisory_lock(1)", True, "advisory lock of backend"),
        ("CREATE SCHEMA left_behind", True, "schema left_behind"),
        ("CREATE TABLE public.left_behind (id int)", True, "schema public: left_behind"),
    ],
)
def test_a_test_that_leaves_something_behind_fails(
    pool: SchemaPool, monkeypatch: pytest.MonkeyPatch, statement: str, is_committed: bool, what: str
):
    monkeypatch.setattr("tests.prepared_schemas.patiently", lambda seconds: 0.2)
    before = log_oid(pool)
    lease = pool.lease()
    store = EventStore(make_tables(lease.engine))
    other = create_engine(lease.engine.url)
    with other.connect() as connection:
        store.append(connection, AnyVersion(), [make_event()])
        connection.commit()
        connection.exec_driver_sql(statement)
        if is_committed:
            connection.commit()
        with pytest.raises(LeftBehindError, match=what):
            lease.give_back()
        connection.invalidate()
    other.dispose()
    if "public" in statement:
        with pool.database.begin() as connection:
            connection.exec_driver_sql("DROP TABLE public.left_behind")
    assert log_oid(pool) == before


class TestDatabases:
    def use(self, pool: DatabasePool, statement: str) -> str:
        name = pool.take()
        engine = create_engine(pool.url(name), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            assert self.contents(connection) == (["public"], [])
            connection.exec_driver_sql(statement.replace("{name}", name))
        engine.dispose()
        pool.give_back(name)
        return name

    @staticmethod
    def contents(connection: Connection) -> tuple[list[str], list[str]]:
        found = inspect(connection)
        return [name for name in found.get_schema_names() if name != "information_schema"], found.get_table_names()

    @pytest.mark.parametrize(
        ("statement", "is_kept"),
        [
            ("CREATE SCHEMA more; CREATE TABLE more.t (); CREATE TABLE t (id serial)", True),
            ("DROP SCHEMA public", True),
            ("ALTER DATABASE {name} SET work_mem = '7MB'", False),
            ("GRANT CREATE ON DATABASE {name} TO PUBLIC", False),
            ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", False),
        ],
    )
    def test_one_that_was_used_is_as_good_as_new(self, server: Engine, statement: str, is_kept: bool):
        with closing(DatabasePool(server)) as pool:
            used = self.use(pool, statement)
            assert (self.use(pool, "SELECT 1") == used) is is_kept
