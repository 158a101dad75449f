"""The plans of the hot statements on a log of 200,000 events: each index is used by one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg import ClientCursor
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, Exact, NoStream
from pupsourcing_sa.consumer import Scope
from tests.fix_postgres import open_database
from tests.fix_store import make_event

EVENTS = 200_000


@pytest.fixture(scope="module", params=["ANALYZE", pytest.param("VACUUM ANALYZE", marks=pytest.mark.exhaustive)])
def big_log(server: Engine, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Two common types of aggregate and a rare one; aggregates of 20 events; a correlation id for one in a hundred.

    One variant has never been vacuumed. Before PostgreSQL 13, autovacuum rarely visits tables with inserts only, and an
    index-only scan is cheap only after VACUUM.
    """
    with open_database(server) as engine:
        EventTables().metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE events SET (autovacuum_enabled = off)"))
            connection.execute(
                text(
                    """
                    INSERT INTO events (aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload,
                                        correlation_id)
                    SELECT CASE WHEN n % 10000 = 0 THEN 'Rare' WHEN n % 10000 % 3 = 0 THEN 'Order' ELSE 'User' END,
                           (n % 10000)::text, n / 10000 + 1, md5(n::text)::uuid, 'E' || n % 5, '\\x7b7d',
                           CASE WHEN n % 100 = 0 THEN 'c' || n % 1000 END
                    FROM generate_series(0, :events - 1) AS n
                    """
                ),
                {"events": EVENTS},
            )
            connection.execute(
                text(
                    "INSERT INTO aggregate_heads SELECT aggregate_type, aggregate_id, max(aggregate_version)"
                    " FROM events GROUP BY 1, 2"
                )
            )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(request.param))
        yield engine


@contextmanager
def explained(engine: Engine) -> Iterator[list[str]]:
    """Yield the plans of the store's statements in the block.

    They are generic plans, made without the values: a connection uses them for a prepared statement.
    """
    plans: list[str] = []

    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(("SELECT", "WITH")):
            return
        names: list[str] = []

        def number(found: re.Match[str]) -> str:
            if found[1] not in names:
                names.append(found[1])
            return f"${names.index(found[1]) + 1}"

        prepared = re.sub(r"%\((\w+)\)s", number, statement).replace("%%", "%")
        values = ", ".join(f"%({name})s" for name in names)
        with ClientCursor(connection.connection.driver_connection) as other:
            other.execute("SAVEPOINT explained; SET LOCAL plan_cache_mode = force_generic_plan; DEALLOCATE ALL")
            other.execute(f"PREPARE explained AS {prepared}")
            execute = f"EXECUTE explained ({values})" if names else "EXECUTE explained"
            other.execute(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF) {execute}", parameters)
            plans.append("\n".join(row[0] for row in other.fetchall()))
            other.execute("ROLLBACK TO explained; DEALLOCATE ALL")

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def rows_read(plan: str) -> int:
    """Return the number of rows that the scans read, including those that a filter removed."""
    scanned = 0
    for node in re.finditer(r"Scan[^\n]* on (?:events|aggregate_heads)[^\n]*rows=([\d.]+) loops=(\d+)", plan):
        scanned += round(float(node[1]) * int(node[2]))
    return scanned + sum(map(int, re.findall(r"Rows Removed by Filter: (\d+)", plan)))


STORE = EventStore()


@pytest.mark.parametrize(
    ("options", "most"), [({}, 20), ({"from_version": 18}, 3), ({"backwards": True, "limit": 1}, 1)]
)
def test_an_aggregate_stream(big_log: Engine, options, most: int):
    with Session(big_log) as session, explained(big_log) as plans:
        assert len(STORE.read_aggregate_stream(session, "User", "77", **options)) == most
    assert "events_aggregate_type_aggregate_id_aggregate_version_key" in plans[0]
    assert rows_read(plans[0]) == most


@pytest.mark.parametrize(
    ("scope", "index", "most"),
    [
        (Scope(), "events_pkey", 100),
        (Scope.of(aggregate_types={"Rare"}), "events_aggregate_type_global_position_idx", 40),
        (Scope.of(aggregate_types={"User", "Order", "Rare"}), "events_aggregate_type_global_position_idx", 400),
        (Scope.of(aggregate_types={"User"}, event_types={"E1"}), "", 1000),  # either of the two is right
        (Scope.of(event_types={"E1"}), "events_pkey", 600),
        (Scope.of(correlation_id="c700"), "events_correlation_id_global_position_idx", 200),
        (Scope.of(aggregate_types={"User"}, correlation_id="c700"), "events_correlation_id_global_position_idx", 400),
        (Scope(partitions=4, partition=1), "events_pkey", 700),
    ],
    ids=repr,
)
@pytest.mark.parametrize("after", [0, 150_000])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_page_of_the_log(big_log: Engine, scope: Scope, index: str, most: int, after: int, backwards: bool):
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.reader.page(session, scope, after, EVENTS, 100, backwards=backwards)
    assert index in plans[0]
    assert "Seq Scan" not in plans[0]
    assert rows_read(plans[0]) <= most, plans[0]


def test_a_rare_scope_that_has_nothing_new_looks_at_nothing(big_log: Engine):
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.reader.page(session, Scope.of(aggregate_types={"Rare"}), 199_000, EVENTS, 100)
    assert rows_read(plans[0]) == 0


def test_positions(big_log: Engine):
    with Session(big_log) as session, explained(big_log) as plans:
        assert STORE.latest_global_position(session) == EVENTS
        assert STORE.stable_position(session) == EVENTS
    assert rows_read(plans[0]) == 1
    assert rows_read(plans[1]) <= 1 + len(re.findall("on pg_", plans[1])) * 50, plans[1]


@pytest.mark.parametrize("expected", [NoStream(), AnyVersion(), Exact(20)], ids=repr)
def test_an_append(big_log: Engine, expected):
    name = "nobody" if expected == NoStream() else "77"
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.append(session, expected, [make_event(name)])
    assert "Seq Scan" not in plans[0]
    assert rows_read(plans[0]) <= 1


def test_an_append_to_many(big_log: Engine):
    appends = [(AnyVersion(), [make_event(str(number))]) for number in range(1, 20)]
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.append_many(session, appends)
    assert "Seq Scan" not in plans[0]
    assert rows_read(plans[0]) <= 40


def test_a_retried_append(big_log: Engine):
    new = make_event("retried")
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.append(session, NoStream(), [new])
        STORE.append(session, NoStream(), [new], idempotent=True)
    assert any("events_event_id_key" in plan for plan in plans)
    assert all("Seq Scan on events" not in plan for plan in plans)
