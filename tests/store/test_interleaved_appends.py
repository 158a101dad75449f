"""`append_many` with aggregates that alternate: positions follow the order in which the events were given."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pupsourcing_sa import (
    AnyVersion,
    DuplicateEventError,
    Exact,
    ExpectedVersion,
    NoStream,
    OptimisticConcurrencyError,
    PersistedEvent,
)
from tests.fix_store import Log, Transaction, make_event, make_named_tables, wait_until_blocked


def log_of(log: Log) -> list[tuple[str, int, object]]:
    events = log.tables.events
    with log.engine.connect() as connection:
        rows = connection.execute(events.select().order_by(events.c.global_position))
        return [(row.aggregate_id, row.aggregate_version, row.event_id) for row in rows]


def values(event: PersistedEvent) -> tuple[object, ...]:
    """Return what an append decides, and the payload as JSON: a JSONB column does not keep its text."""
    return event.event_id, event.aggregate_id, event.aggregate_version, event.global_position, event.json()


def test_each_entry_has_a_result_of_its_own(log: Log):
    transaction = log.begin()
    transaction.append(NoStream(), [make_event("b")])
    entries = [
        (NoStream(), [make_event("a"), make_event("a")]),
        (Exact(1), [make_event("b")]),
        (AnyVersion(), [make_event("a")]),
        (AnyVersion(), [make_event("b"), make_event("b")]),
        (NoStream(), [make_event("a", aggregate_type="Order")]),
    ]
    results = transaction.append_many(entries)
    transaction.commit()
    assert [(result.from_version, result.to_version) for result in results] == [(0, 2), (1, 2), (2, 3), (2, 4), (0, 1)]
    assert [result.global_positions for result in results] == [(2, 3), (4,), (5,), (6, 7), (8,)]
    persisted = [event for result in results for event in result.events]
    assert log_of(log)[1:] == [(event.aggregate_id, event.aggregate_version, event.event_id) for event in persisted]
    assert [event.event_id for event in persisted] == [event.event_id for _, events in entries for event in events]


@pytest.mark.parametrize(
    ("first", "later", "actual"),
    [
        (NoStream(), Exact(1), None),
        (Exact(0), NoStream(), None),
        (AnyVersion(), Exact(99), None),
        (Exact(1), AnyVersion(), 0),
        (Exact(2), NoStream(), 0),
    ],
    ids=repr,
)
def test_the_expected_version_of_the_first_entry_counts(log: Log, first, later, actual):
    transaction = log.begin()
    entries = [(first, [make_event("a")]), (AnyVersion(), [make_event("b")]), (later, [make_event("a")])]
    if actual is None:
        assert [result.to_version for result in transaction.append_many(entries)] == [1, 1, 2]
    else:
        with pytest.raises(OptimisticConcurrencyError) as caught:
            transaction.append_many(entries)
        assert (caught.value.aggregate_id, caught.value.expected, caught.value.actual) == ("a", first, actual)
    transaction.commit()
    assert log.heads() == ({"a": 2, "b": 1} if actual is None else {})


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_lost_race_takes_back_all_entries(engine: Engine, plain_log: Log, level: str):
    """Under REPEATABLE READ, PostgreSQL does not say which aggregate it was: the error names one that was expected."""
    store = plain_log.store
    with Session(engine) as session:
        store.append_many(session, [(NoStream(), [make_event("a")]), (NoStream(), [make_event("b")])])
        session.commit()
    caught: list[OptimisticConcurrencyError] = []
    with Session(engine) as fast, Session(engine.execution_options(isolation_level=level)) as slow:
        store.append(fast, Exact(1), [make_event("b")])
        pid = slow.scalar(text("SELECT pg_backend_pid()"))

        def append() -> None:
            entries = [(AnyVersion(), "a"), (Exact(7), "a"), (Exact(1), "b"), (AnyVersion(), "a")]
            try:
                store.append_many(slow, [(expected, [make_event(name)]) for expected, name in entries])
            except OptimisticConcurrencyError as error:
                caught.append(error)

        thread = threading.Thread(target=append)
        thread.start()
        wait_until_blocked(engine, pid)
        fast.commit()
        thread.join()
        slow.commit()
    [error] = caught
    assert (error.aggregate_id, error.expected) == ("b", Exact(1))
    assert error.actual == (2 if level == "READ COMMITTED" else None)
    assert plain_log.heads() == {"a": 1, "b": 2}


def test_equal_ids_of_two_entries_are_refused(plain_log: Log):
    transaction = plain_log.begin()
    event = make_event("a")
    entries = [(AnyVersion(), [event]), (AnyVersion(), [make_event("b")]), (AnyVersion(), [event])]
    with pytest.raises(DuplicateEventError, match="must be unique"):
        transaction.append_many(entries)


@pytest.mark.parametrize("options", [{}, {"payload": JSONB}], ids=["BYTEA", "JSONB"])
def test_any_interleaving(engine: Engine, options, request: pytest.FixtureRequest):
    """A model of the log predicts each result, each conflict and the content of the log."""
    log = Log(engine, make_named_tables(engine, "default", **options), "session", notify_channel="events")
    request.addfinalizer(log.close)
    names = st.sampled_from("abcde")
    expected_versions = st.one_of(st.just(AnyVersion()), st.just(NoStream()), st.integers(0, 3).map(Exact))
    entries = st.lists(st.tuples(expected_versions, names, st.integers(1, 3)), min_size=1, max_size=12)

    @settings(database=None)
    @given(calls=st.lists(entries, min_size=1, max_size=4))
    def check(calls: list[list[tuple[ExpectedVersion, str, int]]]) -> None:
        with closing(log.begin()) as transaction:
            run(transaction, calls)

    def run(transaction: Transaction, calls: list[list[tuple[ExpectedVersion, str, int]]]) -> None:
        versions: dict[str, int] = {}
        appended, last = [], 0
        for number, call in enumerate(calls):
            given_events = [
                (expected, [make_event(name, payload=[number, place, count]) for count in range(size)])
                for place, (expected, name, size) in enumerate(call)
            ]
            firsts: dict[str, ExpectedVersion] = {}
            for expected, name, _ in call:
                firsts.setdefault(name, expected)
            conflicts = [name for name, first in firsts.items() if first.version not in (None, versions.get(name, 0))]
            try:
                results = transaction.append_many(given_events)
            except OptimisticConcurrencyError as error:
                assert (error.aggregate_id, error.actual) == (conflicts[0], versions.get(conflicts[0], 0))
                continue
            assert conflicts == []
            for (_, name, size), result in zip(call, results, strict=True):
                version = versions.get(name, 0)
                assert (result.from_version, result.to_version) == (version, version + size)
                versions[name] = version + size
            positions = [position for result in results for position in result.global_positions]
            assert positions == sorted(positions)
            assert positions[0] > last
            last = positions[-1]
            appended += [event for result in results for event in result.events]
        found = log.store.reader.events_by_id(transaction.session, [event.event_id for event in appended])
        assert list(map(values, found)) == list(map(values, appended))

    check()
