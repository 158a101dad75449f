"""Reading streams and the log."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, AsyncEventStore, EventStore, EventTables, NoStream, PersistedEvent
from pupsourcing_sa.errors import StablePositionError
from tests.fix_store import Log, Transaction, make_event


def collect(log: Log, iterator: Any) -> list[Any]:
    """Return the elements of a sync or async iterator."""
    if not isinstance(iterator, AsyncIterator):
        return list(iterator)

    async def everything() -> list[Any]:
        return [each async for each in iterator]

    return log._await(everything())


@pytest.fixture
def ten(log: Log) -> Transaction:
    """Ten committed events of one aggregate."""
    transaction = log.begin()
    transaction.append(NoStream(), [make_event(payload=number) for number in range(1, 11)])
    transaction.commit()
    return transaction


class TestAggregateStream:
    def test_ranges(self, ten: Transaction):
        cases: list[tuple[dict[str, Any], Iterable[int]]] = [
            ({}, range(1, 11)),
            ({"from_version": 4}, range(4, 11)),
            ({"to_version": 4}, range(1, 5)),
            ({"from_version": 4, "to_version": 6}, range(4, 7)),
            ({"from_version": 4, "to_version": 4}, [4]),
            ({"from_version": 6, "to_version": 4}, []),
            ({"from_version": 11}, []),
            ({"to_version": 0}, []),
            ({"limit": 3}, range(1, 4)),
            ({"limit": 3, "from_version": 9}, [9, 10]),
            ({"backwards": True}, range(10, 0, -1)),
            ({"backwards": True, "limit": 1}, [10]),
            ({"backwards": True, "limit": 2, "to_version": 5}, [5, 4]),
        ]
        for options, expected in cases:
            stream = ten.read_aggregate_stream("User", "u1", **options)
            assert [event.aggregate_version for event in stream] == list(expected), options
            assert [event.json() for event in stream] == list(expected), options
            assert stream.version == max(expected, default=0), options

    def test_what_does_not_exist_is_empty(self, ten: Transaction):
        for names in (("User", "nobody"), ("Order", "u1"), ("", ""), ("User", "\0")):
            stream = ten.read_aggregate_stream(*names)
            assert (stream.is_empty, stream.version, stream.events) == (True, 0, ())
            assert ten.aggregate_version(*names) == 0

    def test_the_version_without_the_events(self, ten: Transaction):
        assert ten.aggregate_version("User", "u1") == 10

    def test_page_by_page(self, log: Log, ten: Transaction):
        def versions(**options: int) -> list[int]:
            events = log.store.iterate_aggregate_stream(ten.session, "User", "u1", **options)
            return [event.aggregate_version for event in collect(log, events)]

        for page_size in (1, 3, 5, 10, 11):
            assert versions(page_size=page_size) == list(range(1, 11))
            assert versions(page_size=page_size, from_version=3, to_version=8) == list(range(3, 9))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"from_version": -1}, ValueError, "from_version must be between 0"),
            ({"to_version": "1"}, TypeError, "to_version must be an int"),
            ({"limit": 0}, ValueError, "limit must be between 1"),
            ({"limit": True}, TypeError, "limit must be an int"),
        ],
    )
    def test_bad_input(self, options, error, message):
        with pytest.raises(error, match=message):
            EventStore().read_aggregate_stream(Session(), "User", "u1", **options)
        with pytest.raises(TypeError, match="aggregate_id must be a str"):
            EventStore().read_aggregate_stream(Session(), "User", 5)  # type: ignore[arg-type]


@pytest.fixture
def scoped(log: Log) -> Transaction:
    """Positions 1 to 8 with alternating aggregate types, event types and correlation ids."""
    transaction = log.begin()
    for number in range(8):
        event = make_event(
            aggregate_type=("User", "Order")[number % 2],
            event_type=("A", "B")[number // 2 % 2],
            correlation_id=(None, "c")[number // 4],
        )
        transaction.append(AnyVersion(), [event])
    transaction.commit()
    return transaction


class TestLog:
    def test_scopes(self, scoped: Transaction):
        cases: list[tuple[dict[str, Any], list[int]]] = [
            ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
            ({"after": 3}, [4, 5, 6, 7, 8]),
            ({"after": 8}, []),
            ({"after": 3, "limit": 2}, [4, 5]),
            ({"up_to": 3}, [1, 2, 3]),
            ({"after": 5, "up_to": 3}, []),
            ({"up_to": 10**18}, [1, 2, 3, 4, 5, 6, 7, 8]),
            ({"aggregate_types": {"User"}}, [1, 3, 5, 7]),
            ({"aggregate_types": ["User", "Order", "Nothing"], "limit": 3}, [1, 2, 3]),
            ({"aggregate_types": []}, [1, 2, 3, 4, 5, 6, 7, 8]),
            ({"aggregate_types": {"Nothing"}}, []),
            ({"event_types": {"B"}}, [3, 4, 7, 8]),
            ({"aggregate_types": {"Order"}, "event_types": {"B"}}, [4, 8]),
            ({"correlation_id": "c"}, [5, 6, 7, 8]),
            ({"correlation_id": "c", "aggregate_types": {"User"}}, [5, 7]),
            ({"correlation_id": "c", "aggregate_types": {"User"}, "event_types": {"B"}}, [7]),
            ({"correlation_id": ""}, []),
            ({"backwards": True}, [8, 7, 6, 5, 4, 3, 2, 1]),
            ({"backwards": True, "limit": 2, "up_to": 6}, [6, 5]),
            ({"backwards": True, "limit": 3, "aggregate_types": {"User", "Order"}}, [8, 7, 6]),
            ({"backwards": True, "after": 4, "aggregate_types": {"Order"}}, [8, 6]),
            ({"backwards": True, "limit": 1, "correlation_id": "c"}, [8]),
        ]
        for options, expected in cases:
            assert [event.global_position for event in scoped.read_events(**options)] == expected, options

    def test_page_by_page(self, log: Log, scoped: Transaction):
        def positions(**options: Any) -> list[int]:
            events = log.store.iterate_events(scoped.session, **options)
            return [event.global_position for event in collect(log, events)]

        for size in (1, 3, 8, 9):
            assert positions(page_size=size) == [1, 2, 3, 4, 5, 6, 7, 8]
            assert positions(page_size=size, after=2, up_to=7, aggregate_types={"User"}) == [3, 5, 7]
            assert positions(page_size=size, correlation_id="c", event_types={"A"}) == [5, 6]

    def test_iterating_ends_at_the_stable_position_of_its_beginning(self, plain_log: Log):
        transaction = plain_log.begin()
        transaction.append(NoStream(), [make_event(), make_event(), make_event()])
        transaction.commit()
        events = plain_log.store.iterate_events(transaction.session, page_size=1)
        assert next(events).global_position == 1
        transaction.append(AnyVersion(), [make_event()])
        transaction.commit()
        assert [event.global_position for event in events] == [2, 3]

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"after": -1}, ValueError, "after must be between 0"),
            ({"after": None}, TypeError, "after must be an int"),
            ({"limit": 0}, ValueError, "limit must be between 1"),
            ({"limit": 1.5}, TypeError, "limit must be an int"),
            ({"up_to": -5}, ValueError, "up_to must be between 0"),
            ({"aggregate_types": "User"}, TypeError, r"aggregate_types must be a set of str, such as \{'User'\}"),
            ({"event_types": [None]}, TypeError, "event_types must contain str only"),
            ({"correlation_id": 5}, TypeError, "correlation_id must be a str"),
        ],
    )
    def test_bad_input(self, options, error, message):
        with pytest.raises(error, match=message):
            EventStore().read_events(Session(), **options)

    def test_iterating_refuses_at_once(self):
        for options in ({"page_size": 0}, {"after": -1}, {"up_to": -1}):
            with pytest.raises(ValueError, match=next(iter(options))):
                EventStore().iterate_events(Session(), **options)
        with pytest.raises(ValueError, match="page_size"):
            EventStore().iterate_aggregate_stream(Session(), "User", "u1", page_size=0)

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_an_old_snapshot_needs_a_bound(self, engine, plain_log: Log, level: str):
        store = plain_log.store
        with Session(engine) as session, Session(engine) as reader:
            store.append(session, NoStream(), [make_event()])
            session.commit()
            reader.connection(execution_options={"isolation_level": level})
            with pytest.raises(StablePositionError, match=f"under {level}.*pass up_to="):
                store.read_events(reader)
            store.append(session, AnyVersion(), [make_event()])  # not in the reader's snapshot
            session.commit()
            assert len(store.read_events(reader, up_to=1)) == 1
            assert store.stable_position(reader) == 1  # as old as the snapshot, and valid


def test_a_long_stream_takes_constant_memory(plain_log: Log):
    transaction = plain_log.begin()
    for _ in range(5):
        transaction.append(AnyVersion(), [make_event(payload=b"x" * 1000) for _ in range(1000)])
    transaction.commit()

    def peak(read: Callable[[], Iterable[PersistedEvent]]) -> int:
        tracemalloc.start()
        assert sum(len(event.payload) for event in read()) == 5_000_000
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    store, session = plain_log.store, transaction.session
    assert peak(lambda: store.iterate_events(session, page_size=100)) < 1_000_000
    assert peak(lambda: store.iterate_aggregate_stream(session, "User", "u1", page_size=100)) < 1_000_000
    assert peak(lambda: store.read_aggregate_stream(session, "User", "u1")) > 5_000_000  # the control


class TestJsonPayload:
    @pytest.fixture
    def store(self, engine) -> EventStore:
        tables = EventTables(payload=JSONB)
        tables.metadata.create_all(engine)
        return EventStore(tables)

    def test_it_comes_back_and_can_be_queried(self, engine, store: EventStore):
        events = [make_event(payload={"n": number, "tags": ["ä", "\\u0000"]}) for number in range(5)]
        events.append(make_event(payload=b' {"n": 5} '))
        with Session(engine) as session:
            store.append(session, NoStream(), events)
            stream = store.read_aggregate_stream(session, "User", "u1")
            assert [event.json() for event in stream] == [event.json() for event in events]
            c = store.tables.events.c
            found = session.scalars(select(c.aggregate_version).where(c.payload["n"].as_integer() > 3)).all()
            assert found == [5, 6]
            again = store.append(session, AnyVersion(), events, idempotent=True)
            assert again.global_positions == (1, 2, 3, 4, 5, 6)

    @pytest.mark.parametrize("payload", [{"a": 1e23, "1e23": "1e23"}, b"[1E22, 1e0, 1.5E+3, -2e308, 0e1000]", 1.5e300])
    def test_large_floats_stay_floats(self, engine, store: EventStore, payload):
        event = make_event(payload=payload)
        with Session(engine) as session:
            store.append(session, NoStream(), [event])
            (found,) = store.read_aggregate_stream(session, "User", "u1")
            assert found.json() == event.json()

    @pytest.mark.parametrize("payload", [b"\xff", b"{", b"NaN", {"a": "\0"}])
    def test_what_it_cannot_hold_is_refused_before_anything_is_written(self, engine, store: EventStore, payload):
        with Session(engine) as session:
            with pytest.raises(ValueError, match="^payload of event"):
                store.append(session, NoStream(), [make_event(), make_event(payload=payload)])
            assert store.append(session, NoStream(), [make_event()]).to_version == 1


def test_who_holds_the_stable_position(engine, log: Log):
    first, second = log.begin(), log.begin()
    first.append(NoStream(), [make_event("u1")])
    first.execute("SELECT 'busy'")
    second.append(NoStream(), [make_event("u2")])
    (one, two) = log.begin().blocking_appends()
    assert (one.mark, two.mark) == (0, 1)
    assert one.pid == first.execute("SELECT pg_backend_pid()")[0][0]
    assert (one.gid, one.user, one.state) == (None, engine.url.username, "idle in transaction")
    assert "busy" in one.query or "pg_backend_pid" in one.query
    assert one.age.total_seconds() >= 0
    first.commit()
    second.rollback()
    assert log.begin().blocking_appends() == []


def test_a_prepared_transaction_is_named(engine, plain_log: Log):
    with engine.connect() as connection:
        transaction = connection.begin_twophase("forgotten")
        plain_log.store.append(connection, NoStream(), [make_event()])
        transaction.prepare()
        (found,) = plain_log.begin().blocking_appends()
        transaction.rollback()
    assert (found.pid, found.gid, found.state) == (None, "forgotten", "prepared")
    assert found.user == engine.url.username
    assert found.age.total_seconds() >= 0


@pytest.mark.parametrize("store", [EventStore(), AsyncEventStore()], ids=["sync", "async"])
def test_a_wrong_scope_is_refused_before_the_first_event_is_requested(store: Any):
    with pytest.raises(TypeError, match="aggregate_types must be a set of str"):
        store.iterate_events(None, aggregate_types="User")
