"""Schemas with tables, created once in each process and emptied after each test.

Creating the tables of a log and dropping them takes about a hundred times as long as deleting a few rows. So a schema
is *prepared* once for each kind of tables. A test leases it under a name of its own. After the test, its rows are
deleted, its sequences restart, and it is *parked* under another name until the next test of that kind.

A schema whose catalog entries differ from what was prepared is dropped instead: the test has altered something.
A transaction, an advisory lock, a setting or a schema that a test leaves behind is an error of that test. An advisory
lock would be a low-water mark of the next test, because the log keeps its oid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.schema import CreateSchema, DropSchema

from tests.waiting import patiently

__all__ = ["Lease", "LeftBehindError", "SchemaPool", "prepare"]

_OPTION: Final = "leased_schema"

#: A table with more than these bytes is truncated. Deleting the rows of a small one takes a tenth of the time.
_MAX_DELETED: Final = 128 * 1024

#: Everything in some schemas that a statement can alter. Not what every row alters, nor names, which leases change.
#: Statistics count, so that an ANALYZE in one test does not choose the plans of another.
_SIGNATURE: Final = text(
    """
    WITH namespaces AS MATERIALIZED (
        SELECT oid, nspacl::text AS acl FROM pg_namespace WHERE nspname = ANY (:schemas)
    ), members AS MATERIALIZED (
        SELECT classid, objid FROM pg_depend, namespaces
        WHERE refclassid = 'pg_namespace'::regclass AND refobjid = namespaces.oid
    ), relations AS MATERIALIZED (
        SELECT objid AS oid FROM members WHERE classid = 'pg_class'::regclass
        UNION ALL
        SELECT indexrelid FROM pg_index JOIN members ON objid = indrelid AND classid = 'pg_class'::regclass
    ), entries (entry) AS (
        SELECT namespaces::text FROM namespaces
        UNION ALL
        SELECT members::text FROM members
        UNION ALL
        SELECT (c.oid, relname, relkind, relpersistence, relowner, relacl::text, reloptions, relrowsecurity,
            relforcerowsecurity, relreplident, reltablespace, relam)::text
        FROM pg_class AS c JOIN relations USING (oid)
        UNION ALL
        SELECT a::text FROM pg_attribute AS a JOIN relations ON attrelid = relations.oid
        UNION ALL
        SELECT d::text FROM pg_attrdef AS d JOIN relations ON adrelid = relations.oid
        UNION ALL
        SELECT (indexrelid, indisunique, indisvalid, indisready, indisreplident, indkey, indpred)::text
        FROM pg_index JOIN relations ON indexrelid = relations.oid
        UNION ALL
        SELECT c::text FROM pg_constraint AS c JOIN relations ON conrelid = relations.oid
        UNION ALL
        SELECT t::text FROM pg_trigger AS t JOIN relations ON tgrelid = relations.oid
        UNION ALL
        SELECT r::text FROM pg_rewrite AS r JOIN relations ON ev_class = relations.oid
        UNION ALL
        SELECT p::text FROM pg_policy AS p JOIN relations ON polrelid = relations.oid
        UNION ALL
        SELECT i::text FROM pg_inherits AS i JOIN relations ON inhparent = relations.oid
        UNION ALL
        SELECT s::text FROM pg_sequence AS s JOIN relations ON seqrelid = relations.oid
        UNION ALL
        SELECT p::text FROM pg_proc AS p JOIN members ON objid = p.oid AND classid = 'pg_proc'::regclass
        UNION ALL
        SELECT (starelid, staattnum)::text FROM pg_statistic JOIN relations ON starelid = relations.oid
    )
    SELECT md5(string_agg(entry, ';' ORDER BY entry)) FROM entries
    """
)

#: What no test may leave behind in the database, but for schemas.
_LEFT_BEHIND: Final = text(
    """
    SELECT 'transaction of backend ' || pid || ' (' || state || '): ' || query AS what, pid
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        AND xact_start IS NOT NULL
    UNION ALL
    SELECT DISTINCT 'advisory lock of backend ' || pid, pid
    FROM pg_locks JOIN pg_database AS d ON d.oid = database
    WHERE locktype = 'advisory' AND datname = current_database() AND pid IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction ' || gid, NULL FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT 'setting ' || setconfig::text, NULL
    FROM pg_db_role_setting JOIN pg_database AS d ON d.oid = setdatabase
    WHERE datname = current_database()
    """
)

_SCHEMAS: Final = text(
    "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')"
    " UNION ALL SELECT 'public: ' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
)

_FILLED: Final = text(
    """
    SELECT c.oid::regclass::text AS name, relkind, pg_relation_size(c.oid) AS bytes, seqstart
    FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = relnamespace
        LEFT JOIN pg_sequence ON seqrelid = c.oid
    WHERE nspname = ANY (:schemas) AND (relkind = 'S' OR relkind IN ('r', 'p') AND pg_relation_size(c.oid) > 0)
    """
)


class LeftBehindError(Exception):
    """A test has left something behind in the database that other tests share."""


@dataclass
class _Prepared:
    kind: Hashable
    signature: str
    #: The schema of the lease, and one with a name that the kind decides.
    parked: tuple[str, ...]
    wanted: tuple[str, ...] = ()


@dataclass
class SchemaPool:
    """The schemas of one database.

    Args:
        database: connects to it, with a ``pool_pre_ping``: some tests terminate all connections.
    """

    database: Engine
    _parked: dict[Hashable, _Prepared] = field(default_factory=dict)

    def lease(self) -> Lease:
        return Lease(self)

    def take(self, kind: Hashable) -> _Prepared | None:
        return self._parked.pop(kind, None)

    def park(self, prepared: _Prepared) -> None:
        self._parked[prepared.kind] = prepared

    def parked_schemas(self) -> set[str]:
        return {name for prepared in self._parked.values() for name in prepared.parked}


class Lease:
    """An empty schema for one test. `prepare` exchanges it for one with tables."""

    def __init__(self, pool: SchemaPool) -> None:
        self._pool = pool
        self._database = pool.database
        self._prepared: _Prepared | None = None
        self.schema = f"test_{uuid4().hex}"
        with self._database.begin() as connection:
            connection.execute(CreateSchema(self.schema))
        url = self._database.url.update_query_dict({"options": f"-csearch_path={self.schema}"})
        self.engine = create_engine(url)
        self.engine.update_execution_options(**{_OPTION: self})

    def prepare(self, kind: Hashable, create: Callable[[], None], *, schema: str | None = None) -> None:
        """Have the tables of a kind in the schema, empty.

        Args:
            kind: identifies the tables: two that differ in anything have two kinds.
            create: creates the tables, if no prepared schema can be had.
            schema: the name of another schema that these tables are in.
        """
        extra = () if schema is None else (schema,)
        is_first = self._prepared is None
        prepared = self._pool.take(kind) if is_first else None
        with self._database.begin() as connection:
            is_empty = is_first and not connection.scalar(
                text(
                    "SELECT EXISTS (SELECT FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass"
                    " AND refobjid = (SELECT oid FROM pg_namespace WHERE nspname = :schema))"
                ),
                {"schema": self.schema},
            )
            if prepared is not None and is_empty:
                connection.execute(DropSchema(self.schema))
                _rename(connection, prepared.parked, (self.schema, *extra))
                prepared.wanted = (self.schema, *extra)
                self._prepared = prepared
                return
            for name in extra:
                connection.execute(CreateSchema(name))
        if prepared is not None:
            self._pool.park(prepared)
        create()
        if is_empty and prepared is None:
            parked = tuple(f"parked_{uuid4().hex}" for _ in (self.schema, *extra))
            wanted = (self.schema, *extra)
            with self._database.connect() as connection:
                signature = str(connection.scalar(_SIGNATURE, {"schemas": list(wanted)}))
            self._prepared = _Prepared(kind, signature, parked, wanted)

    def give_back(self) -> None:
        """Empty the schema and park it, or drop it.

        Raises:
            LeftBehindError: the test has left a transaction, a lock, a setting or a schema behind.
        """
        self.engine.dispose()
        left_behind = self._wait_for_others()
        with self._database.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            prepared = self._prepared
            wanted = prepared.wanted if prepared else (self.schema,)
            is_intact = prepared is not None and prepared.signature == connection.scalar(
                _SIGNATURE, {"schemas": list(wanted)}
            )
            if prepared is not None and is_intact:
                _empty(connection, wanted)
                _rename(connection, wanted, prepared.parked)
                self._pool.park(prepared)
            else:
                for name in wanted:
                    connection.execute(DropSchema(name, cascade=True, if_exists=True))
            for name in set(connection.scalars(_SCHEMAS)) - self._pool.parked_schemas():
                left_behind.append(f"schema {name}")
                if not name.startswith("public: "):
                    connection.execute(DropSchema(name, cascade=True))
        if left_behind:
            raise LeftBehindError("\n".join(left_behind))

    def _wait_for_others(self) -> list[str]:
        """Wait for the backends of closed connections, which end a moment later. Terminate those that stay."""
        deadline = time.monotonic() + patiently(5)
        while True:
            with self._database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                rows = connection.execute(_LEFT_BEHIND).all()
                if not rows or time.monotonic() > deadline:
                    for pid in {row.pid for row in rows if row.pid is not None}:
                        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                    return [row.what for row in rows]
            time.sleep(0.01)


def prepare(engine: Engine, kind: Hashable, create: Callable[[], None], *, schema: str | None = None) -> None:
    """Have the tables of a kind where the engine connects to: leased if it is the fixture ``engine``, else created.

    Args: those of `Lease.prepare`.
    """
    lease: Lease | None = engine.get_execution_options().get(_OPTION)
    if lease is not None:
        lease.prepare(kind, create, schema=schema)
        return
    if schema is not None:
        with engine.begin() as connection:
            connection.execute(CreateSchema(schema))
    create()


def _rename(connection: Connection, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    quote = connection.dialect.identifier_preparer.quote_identifier
    for old, new in zip(before, after, strict=True):
        connection.exec_driver_sql(f"ALTER SCHEMA {quote(old)} RENAME TO {quote(new)}")


def _empty(connection: Connection, schemas: tuple[str, ...]) -> None:
    rows: Any = connection.execute(_FILLED, {"schemas": list(schemas)}).all()
    statements = ["SET LOCAL pupsourcing_sa.allow_rewrite = 'on'"]  # for a guarded log
    tables = [row for row in rows if row.relkind != "S"]
    if any(row.bytes > _MAX_DELETED for row in tables):
        statements.append(f"TRUNCATE {', '.join(row.name for row in tables)}")
    else:
        statements += [f"DELETE FROM {row.name}" for row in tables]
    for row in rows:
        if row.relkind == "S":
            literal = row.name.replace("'", "''")
            statements.append(f"SELECT setval('{literal}', {row.seqstart}, false)")
    connection.connection.cursor().execute(";\n".join(statements).encode())
