"""The plans of the hot statements on a log of 200,000 events: each index is used by one of them.

No plan depends on statistics, or on values: a log that was restored has no statistics, and behind PgBouncer no
statement is prepared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from psycopg import ClientCursor
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, Exact, NoStream
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.store.pages import ByteLimit
from tests.fix_postgres import open_database
from tests.fix_store import make_event

EVENTS = 200_000

FILL = """
    WITH added AS (
        INSERT INTO events (aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload,
                            correlation_id)
        SELECT CASE WHEN n % 10000 = 0 THEN 'Rare' WHEN n % 10000 % 3 = 0 THEN 'Order' ELSE 'User' END,
               (n % 10000)::text, n / 10000 + 1, md5(n::text)::uuid, 'E' || n % 5, '\\x7b7d',
               CASE WHEN n % 100 = 0 THEN 'c' || n % 1000 END
        FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n
        RETURNING aggregate_type, aggregate_id, aggregate_version
    )
    INSERT INTO aggregate_heads (aggregate_type, aggregate_id, aggregate_version)
    SELECT aggregate_type, aggregate_id, max(aggregate_version) FROM added GROUP BY 1, 2
    ON CONFLICT (aggregate_type, aggregate_id) DO UPDATE SET aggregate_version = excluded.aggregate_version
"""

#: Statistics of the log, by what has been executed after some of the events.
STATISTICS: dict[str, dict[int, str]] = {
    "none": {},
    "old": {EVENTS // 100: "ANALYZE"},
    "new": {EVENTS: "ANALYZE"},
    "vacuum": {EVENTS: "VACUUM ANALYZE"},
}
_RARE = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("old", "vacuum")]


@pytest.fixture(scope="module", params=["none", "new", *_RARE])
def big_log(server: Engine, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Two common types of aggregate and a rare one; aggregates of 20 events; a correlation id for one in a hundred.

    Most variants have never been vacuumed. Before PostgreSQL 13, autovacuum rarely visits tables with inserts only, and
    an index-only scan is cheap only after VACUUM.
    """
    with open_database(server) as engine:
        EventTables().metadata.create_all(engine)
        statistics = STATISTICS[request.param]
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in ("events", "aggregate_heads"):
                connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
            for first, last in pairwise(sorted({0, *statistics, EVENTS})):
                connection.execute(text(FILL), {"first": first, "last": last - 1})
                connection.execute(text(statistics.get(last, "SELECT 1")))
        yield engine


Explained = Callable[[Engine], AbstractContextManager[list[str]]]


@pytest.fixture(params=["prepared", "with values"])
def explained(request: pytest.FixtureRequest) -> Explained:
    """Return a context manager that yields the plans of the store's statements in the block.

    The plans of prepared statements are generic: PostgreSQL makes them without the values. A statement that is not
    prepared is planned with its values, and so are the first executions of one that is.
    """
    return partial(explaining, is_prepared=request.param == "prepared")


@contextmanager
def explaining(engine: Engine, *, is_prepared: bool) -> Iterator[list[str]]:
    plans: list[str] = []

    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(("SELECT", "WITH")):
            return
        with ClientCursor(connection.connection.driver_connection) as other:
            other.execute("SAVEPOINT explained; SET LOCAL plan_cache_mode = force_generic_plan; DEALLOCATE ALL")
            explained = prepare(other, statement) if is_prepared else statement
            other.execute(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF) {explained}", parameters)
            plans.append("\n".join(row[0] for row in other.fetchall()))
            other.execute("ROLLBACK TO explained; DEALLOCATE ALL")

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def prepare(cursor: ClientCursor[Any], statement: str) -> str:
    """Prepare a statement, and return one that executes it with the same parameters."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    cursor.execute("PREPARE explained AS " + re.sub(r"%\((\w+)\)s", number, statement).replace("%%", "%"))
    values = ", ".join(f"%({name})s" for name in names)
    return f"EXECUTE explained ({values})" if names else "EXECUTE explained"


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
def test_an_aggregate_stream(big_log: Engine, explained: Explained, options, most: int):
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
        (
            Scope.of(aggregate_types={"User"}, event_types={"E1"}),
            "events_aggregate_type_global_position_idx",
            700,
        ),
        (Scope.of(event_types={"E1"}), "events_pkey", 600),
        (Scope.of(correlation_id="c700"), "events_correlation_id_global_position_idx", 200),
        (Scope.of(aggregate_types={"User"}, correlation_id="c700"), "events_correlation_id_global_position_idx", 400),
        (Scope(partitions=4, partition=1), "events_pkey", 700),
        (Scope(aggregate=("User", "77"), event_types=("E1",)), "events_aggregate_type_aggregate_id_aggregate_ver", 20),
        (Scope(since=datetime(2000, 1, 1, tzinfo=UTC)), "events_pkey", 100),
    ],
    ids=repr,
)
@pytest.mark.parametrize("after", [0, 150_000])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_page_of_the_log(
    big_log: Engine, explained: Explained, scope: Scope, index: str, most: int, after: int, backwards: bool
):
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.reader.page(session, scope, after, EVENTS, 100, backwards=backwards)
    assert index in plans[0]
    assert not re.search("Seq Scan|Bitmap|Gather", plans[0])
    assert rows_read(plans[0]) <= most, plans[0]


@pytest.mark.parametrize("scope", [Scope(), Scope.of(aggregate_types={"User", "Order"})], ids=repr)
def test_a_byte_limit_adds_no_sort(big_log: Engine, explained: Explained, scope: Scope):
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.reader.page(session, scope, 100_000, EVENTS, 100)
        for byte_limit in ByteLimit:
            page = STORE.reader.page(session, scope, 100_000, EVENTS, 100, max_bytes=200, byte_limit=byte_limit)
            assert len(page.events) == 100
    unlimited, *limited = (re.findall(r"(?:\w+ )*(?:Scan|Sort)\b", plan) for plan in plans)
    for nodes in limited:
        assert sorted(set(nodes) - {"Subquery Scan"}) == sorted(set(unlimited) - {"Subquery Scan"})
        assert nodes.count("Sort") == unlimited.count("Sort")


def test_a_sample_reads_its_part_of_the_log(big_log: Engine, explained: Explained):
    with Session(big_log) as session, explained(big_log) as plans:
        rows = STORE.reader.sample(session, 100_000, EVENTS, 1000, 3)
        assert len(STORE.reader.events_at(session, [row[4] for row in rows])) == 15
    # The filter on the rank removes most of the thousand rows. A bitmap scan counts in the index and in the table.
    for plan, most in zip(plans, (2000, 30), strict=True):
        assert "events_pkey" in plan
        assert "Seq Scan" not in plan
        assert rows_read(plan) <= most


def test_a_rare_scope_that_has_nothing_new_looks_at_nothing(big_log: Engine, explained: Explained):
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.reader.page(session, Scope.of(aggregate_types={"Rare"}), 199_000, EVENTS, 100)
    assert rows_read(plans[0]) == 0


def test_positions(big_log: Engine, explained: Explained):
    with Session(big_log) as session, explained(big_log) as plans:
        assert STORE.latest_global_position(session) == EVENTS
        assert STORE.stable_position(session) == EVENTS
    assert rows_read(plans[0]) == 1
    assert rows_read(plans[1]) <= 1 + len(re.findall("on pg_", plans[1])) * 50, plans[1]


@pytest.mark.parametrize("expected", [NoStream(), AnyVersion(), Exact(20)], ids=repr)
def test_an_append(big_log: Engine, explained: Explained, expected):
    name = "nobody" if expected == NoStream() else "77"
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.append(session, expected, [make_event(name)])
    assert "Seq Scan" not in plans[0]
    assert rows_read(plans[0]) <= 1


def test_an_append_to_many(big_log: Engine, explained: Explained):
    appends = [(AnyVersion(), [make_event(str(number))]) for number in range(1, 20)]
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.append_many(session, appends)
    assert "Seq Scan" not in plans[0]
    assert rows_read(plans[0]) <= 40
    assert "Rows Removed by Join Filter" not in plans[0], "it compares each event with each aggregate"


def test_a_retried_append(big_log: Engine, explained: Explained):
    new = make_event("retried")
    with Session(big_log) as session, explained(big_log) as plans:
        STORE.append(session, NoStream(), [new])
        STORE.append(session, NoStream(), [new], idempotent=True)
    assert any("events_event_id_key" in plan for plan in plans)
    assert all("Seq Scan on events" not in plan for plan in plans)
