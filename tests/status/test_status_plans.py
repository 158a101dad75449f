"""The plans of the status's statements on a log of 100,000 events, without statistics and with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Select, create_engine, insert, text
from sqlalchemy.dialects import postgresql

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.status._statements import StatusStatements
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.lock_watch import HolderQuery
from tests.fix_postgres import new_database

EVENTS = 100_000
LOG, TABLES = EventTables(), WorkerTables()
STATEMENTS = StatusStatements(LOG, TABLES)


@pytest.fixture(scope="module", params=["fresh", "analyzed"])
def big_log(request: pytest.FixtureRequest, server: Engine) -> Iterator[Engine]:
    """Forty partitions at the last forty positions but one, each failing on the next event."""
    with new_database(server) as url:
        engine = create_engine(url)
        LOG.metadata.create_all(engine)
        TABLES.metadata.create_all(engine)
        with engine.begin() as connection:
            for table in (LOG.events, TABLES.consumer_checkpoints):
                connection.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = false)"))
            connection.execute(
                text(
                    "INSERT INTO events (aggregate_type, aggregate_id, aggregate_version, event_id, event_type,"
                    " payload) SELECT 'User', 'u', n, md5(n::text)::uuid, 'E', '{}' FROM generate_series(1, :events) n"
                ),
                {"events": EVENTS},
            )
            rows = [
                {"consumer_name": "c", "partition": n, "last_position": EVENTS - n, "failed_position": EVENTS - n + 1}
                for n in range(40)
            ]
            connection.execute(insert(TABLES.consumer_checkpoints), rows)
        if request.param == "analyzed":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
        yield engine
        engine.dispose()


def scans(connection: Connection, statement: Select[Any], **parameters: int) -> list[tuple[str, int]]:
    """Return each scan of the log: its index, and the number of rows that it read."""
    sql = statement.params(parameters).compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    (plan,) = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")).scalar_one()
    found: list[tuple[str, int]] = []

    def walk(node: dict[str, Any]) -> None:
        if node.get("Relation Name") == "events":
            # The index of a bitmap scan is read up to the end of the range, even if LIMIT ends the scan early.
            by = node["Plans"][0] if node["Node Type"] == "Bitmap Heap Scan" else node
            rows = (by["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * by["Actual Loops"]
            found.append((by.get("Index Name", by["Node Type"]), round(rows)))
        for child in node.get("Plans", ()):
            walk(child)

    walk(plan["Plan"])
    return found


def test_lag_is_counted_by_the_primary_key_and_each_event_once(big_log: Engine):
    with big_log.connect() as connection:
        found = scans(connection, STATEMENTS.partitions, own_log="public.events", max_counted=100_001)
    assert {kind for kind, _ in found} == {"events_pkey"}
    # The counted events, the first one of each partition, and the failing ones. Counting for each partition would read
    # 780 rows. On some versions a LIMIT reads one row more.
    assert 39 < sum(rows for _, rows in found) <= 4 * 40


def test_the_limit_bounds_what_is_read(big_log: Engine):
    with big_log.connect() as connection:
        connection.execute(TABLES.consumer_checkpoints.update().values(last_position=0))
        found = scans(connection, STATEMENTS.partitions, own_log="public.events", max_counted=20_000)
    assert {kind for kind, _ in found} == {"events_pkey"}
    assert 20_000 < sum(rows for _, rows in found) <= 20_000 + 1 + 40


def test_the_head_and_what_waits(big_log: Engine):
    with big_log.connect() as connection:
        found = scans(connection, STATEMENTS.log, stable=50_000)
    assert found == [("events_pkey", 1)] * 2


#: At this cost, the default, a server with LLVM compiles a statement before it executes it. That takes half a second.
JIT_ABOVE_COST = 100_000
HOLDERS = HolderQuery(Checkpoint(TABLES, "c", 1))
ASKED = {
    "nodes": STATEMENTS.nodes,
    "log": STATEMENTS.log.params(stable=0),
    "partitions": STATEMENTS.partitions.params(own_log="public.events", max_counted=100_001),
    "locked": STATEMENTS.locked,
    "look": HOLDERS._find,
    "end": HOLDERS._find_and_terminate,
}


def test_no_statement_looks_so_expensive_that_it_is_compiled(big_log: Engine):
    with big_log.connect() as connection:
        for name, statement in ASKED.items():
            sql = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
            (plan,) = connection.execute(text(f"EXPLAIN (FORMAT JSON) {sql}")).scalar_one()
            assert plan["Plan"]["Total Cost"] < JIT_ABOVE_COST, name
