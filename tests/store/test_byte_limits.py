"""Reading with ``max_bytes``: a page ends before the event that exceeds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, PersistedEvent
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.store import log_reader
from pupsourcing_sa.store.pages import ByteLimit
from tests.fix_store import Log, Transaction, make_event, make_tables
from tests.store.test_reading import collect

SIZES = [10, 10, 400, 0, 990, 2_000, 10, 500, 500, 10, 5_000, 10]
LIMITS = [1, 30, 500, 1_000, 4_000, 100_000]


def size(event: PersistedEvent) -> int:
    return len(event.payload) + len((event.metadata_json or "").encode())


def pages(events: list[PersistedEvent], max_bytes: int, limit: int) -> Iterator[list[int]]:
    """Yield the positions of the pages that readers must get, one after the other."""
    page: list[PersistedEvent] = []
    for event in events:
        if page and (len(page) == limit or sum(map(size, [*page, event])) > max_bytes):
            yield [event.global_position for event in page]
            page = []
        page.append(event)
    yield [event.global_position for event in page]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of payloads and metadata that the driver received, for each statement."""
    sizes: list[int] = []
    driver_rows = log_reader.driver_rows

    def measured(*args: Any) -> list[Any]:
        rows = driver_rows(*args)
        sizes.append(sum(len(row[7] or b"") + len((row[11] or "").encode()) for row in rows))
        return rows

    monkeypatch.setattr(log_reader, "driver_rows", measured)
    return sizes


@pytest.fixture
def sized(log: Log) -> Transaction:
    """Events of two aggregates, of two types of aggregate and of event, every other with metadata."""
    transaction = log.begin()
    for number, length in enumerate(SIZES * 2):
        kind = "Order" if number % 3 else "User"
        more = {"metadata": {"user": "ü" * 20}} if number % 2 else {}
        new = make_event(
            "a", aggregate_type=kind, event_type=f"E{number % 2}", correlation_id="c", payload=b"x" * length, **more
        )
        transaction.append(AnyVersion(), [new])
    transaction.commit()
    return transaction


@pytest.mark.parametrize(
    "scope",
    [{}, {"aggregate_types": {"User", "Order"}}, {"event_types": {"E1"}}, {"correlation_id": "c"}],
    ids=["all", "aggregate types", "event types", "correlation"],
)
def test_pages_of_the_log(log: Log, sized: Transaction, received: list[int], scope: dict[str, Any]):
    events = sized.read_events(limit=100, **scope)
    for max_bytes in LIMITS:
        received.clear()
        after, before, found, backwards = 0, events[-1].global_position, [], []
        while page := sized.read_events(after=after, limit=5, max_bytes=max_bytes, **scope):
            found.append([event.global_position for event in page])
            after = found[-1][-1]
        while page := sized.read_events(up_to=before, limit=5, max_bytes=max_bytes, backwards=True, **scope):
            backwards.append([event.global_position for event in page])
            before = backwards[-1][-1] - 1
        assert found == list(pages(events, max_bytes, 5))
        assert backwards == list(pages(events[::-1], max_bytes, 5))
        assert max(received) <= max(max_bytes, *map(size, events))
        iterated = log.store.iterate_events(sized.session, page_size=5, max_bytes=max_bytes, **scope)
        assert collect(log, iterated) == events


def test_pages_of_a_stream(log: Log, sized: Transaction, received: list[int]):
    events = list(sized.read_aggregate_stream("Order", "a"))
    for max_bytes in LIMITS:
        received.clear()
        version, found = 0, []
        while stream := sized.read_aggregate_stream("Order", "a", from_version=version + 1, max_bytes=max_bytes):
            found.append([event.global_position for event in stream])
            version = stream.version
        assert found == list(pages(events, max_bytes, 1000))
        latest = sized.read_aggregate_stream("Order", "a", backwards=True, max_bytes=max_bytes)
        assert [event.global_position for event in latest] == next(pages(events[::-1], max_bytes, 1000))
        assert max(received) <= max(max_bytes, *map(size, events))
        iterated = log.store.iterate_aggregate_stream(sized.session, "Order", "a", max_bytes=max_bytes)
        assert collect(log, iterated) == events


def test_an_iteration_reads_a_page_when_it_needs_it(log: Log, sized: Transaction, received: list[int]):
    events = log.store.iterate_events(sized.session, max_bytes=500)
    first = next(events) if isinstance(events, Iterator) else log._await(anext(events))
    assert first.global_position == 1
    assert len(received) == 1
    assert len(collect(log, events)) == 2 * len(SIZES) - 1


def test_max_bytes_is_a_positive_integer(log: Log):
    transaction = log.begin()
    for wrong, error in ((0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_bytes"):
            transaction.read_events(max_bytes=wrong)
        with pytest.raises(error, match="max_bytes"):
            transaction.read_aggregate_stream("User", "u1", max_bytes=wrong)


@pytest.mark.parametrize("options", [{}, {"payload": JSONB}], ids=["BYTEA", "JSONB"])
def test_an_event_by_its_own_size(engine: Engine, options: dict[str, Any]):
    tables = EventTables(MetaData(), **options)
    tables.metadata.create_all(engine)
    store = EventStore(tables)
    contents: list[dict[str, Any]] = [{"payload": "x" * 50}, {"payload": "x" * 200}, {"payload": "x" * 50}]
    contents.insert(2, {"payload": "x", "metadata": {"m": "x" * 200}})
    with Session(engine) as session:
        store.append(session, AnyVersion(), [make_event(**content) for content in contents])
        session.commit()

        def read(after: int, byte_limit: ByteLimit) -> tuple[list[int], bool]:
            page = store.reader.page(session, Scope(), after, 4, 4, max_bytes=100, byte_limit=byte_limit)
            return [event.global_position for event in page.events], page.is_cut

        each = [([1], True), ([], True), ([], True), ([4], False)]
        total = [([1], True), ([2], True), ([3], True), ([4], False)]
        assert [read(after, ByteLimit.EACH) for after in range(4)] == each
        assert [read(after, ByteLimit.TOTAL) for after in range(4)] == total


def test_measuring_reads_no_payload(engine: Engine):
    """A payload of 500 kB is stored in about 250 pages of 8 kB."""
    store = EventStore(make_tables(engine))
    with Session(engine) as session:
        session.execute(text("ALTER TABLE events ALTER payload SET STORAGE EXTERNAL"))
        for number in range(10):
            store.append(session, AnyVersion(), [make_event(str(number), payload=b"x" * 500_000)])
        for byte_limit in ByteLimit:
            statement = store.reader._statements.page(Scope(), backwards=False, byte_limit=byte_limit)
            values = statement.params(after=0, up_to=10, limit=10, max_bytes=1_000_000)
            sql = values.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
            (plan,) = session.execute(text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}")).scalar_one()
            assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 50
            page = store.reader.page(session, Scope(), 0, 10, 10, max_bytes=1_000_000, byte_limit=byte_limit)
            assert len(page.events) == (10 if byte_limit is ByteLimit.EACH else 2)
