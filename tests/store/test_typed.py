"""Objects of registered classes in the log: appended, read, upcast, and refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from pupsourcing_sa import AnyVersion, EventRegistry, EventStore, Exact, NoEventsError, NoStream
from pupsourcing_sa.errors import EventDecodingError, PayloadError, UnknownEventTypeError
from pupsourcing_sa.registry import Upcasted
from tests.fix_store import VARIANTS, Log, Transaction, make_event, make_named_tables
from tests.store.test_reading import collect

ORDER = ("Order", "o1")


@dataclass(frozen=True)
class Placed:
    total: int


@dataclass(frozen=True)
class Moved:
    city: str


def registry_of_version(version: int) -> EventRegistry:
    """Return the registry of one of three releases of an application."""
    events = EventRegistry()
    if version == 1:
        events.register("Created")(Placed)
        events.register("Changed")(Both)
        events.register("Viewed")(Moved)
        return events
    events.register("Placed", version=version, aliases={"Created"})(Placed)
    events.upcast("Placed", from_version=1)(lambda old: {"total": old["total"] + 1})
    if version == 3:
        events.upcast("Placed", from_version=2)(lambda old: {"total": old["total"] * 10})
    events.register("Moved")(Moved)
    events.retire("Viewed")
    events.upcast("Viewed", from_version=1, into=())(lambda old: [])
    events.upcast("Changed", from_version=1, into={"Placed", "Moved"})(
        lambda old: [Upcasted("Placed", 2, {"total": old["total"]}), Upcasted("Moved", 1, {"city": old["city"]})]
    )
    return events


@dataclass(frozen=True)
class Both:
    total: int
    city: str


@pytest.fixture(
    params=[
        pytest.param(variant, id="-".join(variant), marks=pytest.mark.exhaustive if number > 1 else ())
        for number, variant in enumerate(VARIANTS)
    ]
)
def typed_log(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Log]:
    session, names = request.param
    log = Log(engine, make_named_tables(engine, names), session, registry=registry_of_version(3))
    yield log
    log.close()


def test_objects_come_back_as_objects(typed_log: Log) -> None:
    transaction = typed_log.begin()
    result = transaction.append(NoStream(), [Placed(5), Moved("Bern")], aggregate=ORDER)
    assert [event.data for event in result.events] == [Placed(5), Moved("Bern")]
    stream = transaction.read_aggregate_stream(*ORDER)
    assert [event.data for event in stream] == [Placed(5), Moved("Bern")]
    assert [(event.event_type, event.event_version) for event in stream] == [("Placed", 3), ("Moved", 1)]
    assert stream.events[0].payload == b'{"total":5}'
    transaction.commit()
    events = typed_log.begin().read_events()
    assert [event.data for event in events] == [Placed(5), Moved("Bern")]
    assert events.last_position == result.global_positions[-1]


def test_events_and_objects_side_by_side(typed_log: Log) -> None:
    transaction = typed_log.begin()
    raw = make_event("o1", aggregate_type="Order", event_type="Foreign")
    transaction.append(NoStream(), [raw, Placed(5)], aggregate=ORDER)
    first, second = transaction.read_aggregate_stream(*ORDER)
    assert (first.is_raw, second.is_raw) == (True, False)
    with pytest.raises(UnknownEventTypeError):
        _ = first.data
    with pytest.raises(ValueError, match="aggregate must be that of the events"):
        transaction.append(AnyVersion(), [raw], aggregate=("Order", "other"))


def test_append_many_keeps_the_order_of_interleaved_objects(typed_log: Log) -> None:
    transaction = typed_log.begin()
    other = ("Order", "o2")
    results = transaction.append_many([
        (NoStream(), [Placed(1)], ORDER),
        (NoStream(), [Moved("Bern")], other),
        (AnyVersion(), [Placed(2), Placed(3)], ORDER),
        (NoStream(), [make_event("u1")]),
    ])  # fmt: skip
    assert [result.to_version for result in results] == [1, 1, 3, 1]
    assert [result.events[0].data for result in results[:3]] == [Placed(1), Moved("Bern"), Placed(2)]
    transaction.commit()
    found = typed_log.begin().read_events(aggregate_types={"Order"})
    assert [event.data for event in found] == [Placed(1), Moved("Bern"), Placed(2), Placed(3)]


#: The events of three releases, as the third one reads them.
CURRENT = [Placed(20), Placed(20), Moved("Bern"), Placed(30), Placed(4), Moved("Chur")]


def written_by_three_releases(log: Log) -> Transaction:
    """Return a transaction that three releases have appended to. The second row splits, the third becomes no event."""
    transaction = log.begin()
    for version, objects in (
        (1, [Placed(1), Both(2, "Bern"), Moved("nowhere")]),
        (2, [Placed(3)]),
        (3, [Placed(4), Moved("Chur")]),
    ):
        transaction._store = type(log.store)(log.tables, registry=registry_of_version(version))
        transaction.append(AnyVersion(), objects, aggregate=ORDER)
    return transaction


def test_three_releases_of_an_application(typed_log: Log) -> None:
    """A log that three releases have written is read as the current classes; its rows stay as they were written."""
    transaction, expected = written_by_three_releases(typed_log), CURRENT
    stream = transaction.read_aggregate_stream(*ORDER)
    assert [event.data for event in stream] == expected
    backwards = transaction.read_aggregate_stream(*ORDER, backwards=True)
    assert [event.data for event in backwards] == expected[::-1]
    assert [event.part for event in stream] == [0, 0, 1, 0, 0, 0]
    assert stream.version == 6
    viewed = transaction.read_aggregate_stream(*ORDER, from_version=3, to_version=3)
    assert (viewed.events, viewed.version) == ((), 3)
    written = transaction.execute(f"SELECT event_type, event_version FROM {quoted(typed_log)} ORDER BY 1, 2")
    assert sorted(map(tuple, written)) == [
        ("Changed", 1),
        ("Created", 1),
        ("Moved", 1),
        ("Placed", 2),
        ("Placed", 3),
        ("Viewed", 1),
    ]
    transaction.commit()
    reader = typed_log.begin()
    assert [event.data for event in reader.read_events()] == expected
    assert [event.data for event in reader.read_events(backwards=True)] == expected[::-1]
    # A page counts rows. The third row becomes no event, and a follower continues behind it.
    page = reader.read_events(limit=3)
    assert [event.data for event in page] == expected[:3]
    rest = reader.read_events(after=page.last_position)
    assert [event.data for event in rest] == expected[3:]
    only = reader.read_events(after=page[-1].global_position, limit=1)
    assert (list(only), only.last_position) == ([], page.last_position)
    assert reader.read_events(after=rest.last_position).last_position == rest.last_position


def test_a_byte_limit_counts_rows_and_not_the_objects_that_they_become(typed_log: Log) -> None:
    transaction = written_by_three_releases(typed_log)
    versions, pages = [0], []
    while (stream := transaction.read_aggregate_stream(*ORDER, from_version=versions[-1] + 1, max_bytes=1)).version:
        versions.append(stream.version)
        pages.append([event.data for event in stream])
    by_row = [CURRENT[:1], CURRENT[1:3], [], CURRENT[3:4], CURRENT[4:5], CURRENT[5:]]
    assert (versions, pages) == ([0, 1, 2, 3, 4, 5, 6], by_row)
    iterated = typed_log.store.iterate_aggregate_stream(transaction.session, *ORDER, max_bytes=1)
    assert [event.data for event in collect(typed_log, iterated)] == CURRENT
    transaction.commit()
    reader, positions, pages = typed_log.begin(), [0], []
    while (page := reader.read_events(after=positions[-1], max_bytes=1)).last_position != positions[-1]:
        positions.append(page.last_position)
        pages.append([event.data for event in page])
    assert pages == by_row
    latest = reader.read_events(max_bytes=1, up_to=positions[2], backwards=True)
    assert [event.data for event in latest] == [Moved("Bern"), Placed(20)]
    iterated = typed_log.store.iterate_events(reader.session, max_bytes=1)
    assert [event.data for event in collect(typed_log, iterated)] == CURRENT


def quoted(log: Log) -> str:
    preparer = log.engine.dialect.identifier_preparer
    return str(preparer.format_table(log.tables.events)).replace("%%", "%")


def test_a_row_that_cannot_be_decoded_raises_only_at_its_data(typed_log: Log) -> None:
    transaction = typed_log.begin()
    broken = [
        make_event("o1", aggregate_type="Order", event_type=name, payload={"x": 1}) for name in ("Changed", "Moved")
    ]
    transaction.append(NoStream(), [*broken, Placed(1)], aggregate=ORDER)
    events = list(transaction.read_aggregate_stream(*ORDER))
    assert events[2].data == Placed(1)
    for event in events[:2]:
        with pytest.raises(EventDecodingError, match=f"event at {event.global_position}"):
            _ = event.data


def test_an_append_with_ids_can_be_repeated(typed_log: Log) -> None:
    ids = [uuid4(), uuid4()]
    transaction = typed_log.begin()
    first = transaction.append(NoStream(), [Placed(1), Placed(2)], aggregate=ORDER, event_ids=ids)
    again = transaction.append(NoStream(), [Placed(1), Placed(2)], aggregate=ORDER, event_ids=ids, idempotent=True)
    assert again == first
    assert [event.data for event in again.events] == [Placed(1), Placed(2)]


@dataclass(frozen=True)
class Other:
    x: int


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([Other(1)], {"aggregate": ORDER}, TypeError, "Other is not registered; decorate it"),
        ([Placed("x")], {"aggregate": ORDER}, PayloadError, r"payload of 'Placed' version 3 at \$.total"),  # type: ignore[arg-type]
        ([Placed(1)], {}, TypeError, "aggregate is missing: write aggregate="),
        ([Placed(1)], {"aggregate": "Order"}, TypeError, r"aggregate must be a tuple \(aggregate_type, aggregate_id\)"),
        ([Placed(1)], {"aggregate": ("Order", "")}, ValueError, "aggregate_id must not be empty"),
        ([Placed(1)], {"aggregate": ("Order", 5)}, TypeError, "aggregate_id must be a str"),
        (Placed(1), {"aggregate": ORDER}, TypeError, "events must be a sequence of events, not Placed"),
        ([], {"aggregate": ORDER}, NoEventsError, "at least one event"),
        ([Placed(1)], {"aggregate": ORDER, "event_ids": []}, ValueError, "event_ids must have an id for each of the 1"),
        ([Placed(1)], {"aggregate": ORDER, "event_ids": 5}, TypeError, "event_ids must be a sequence of uuid.UUID"),
        ([Placed(1)], {"aggregate": ORDER, "event_ids": ["x"]}, TypeError, "event_id must be a uuid.UUID"),
        ([Placed(1)], {"aggregate": ORDER, "idempotent": True}, ValueError, "idempotent=True needs event_ids"),
        ([make_event()], {"event_ids": [uuid4()]}, TypeError, "an Event has its own event_id"),
    ],
)
def test_refusals_come_before_any_statement(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    store = EventStore(registry=registry_of_version(3))
    with pytest.raises(error, match=message):
        store.append(None, NoStream(), arguments, **options)  # type: ignore[arg-type]


def test_a_store_without_a_registry_refuses_objects() -> None:
    with pytest.raises(TypeError, match="must contain Event only, not Placed. .* pass registry= to the store"):
        EventStore().append(None, NoStream(), [Placed(1)], aggregate=ORDER)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="registry must be an EventRegistry"):
        EventStore(registry=5)  # type: ignore[arg-type]
    events = EventRegistry()
    events.upcast("Lost", from_version=1)(lambda old: old)
    with pytest.raises(ValueError, match="'Lost', which is not registered"):
        EventStore(registry=events)
    with pytest.raises(TypeError, match="single NamedData"):
        store = EventStore(registry=registry_of_version(3))
        assert store.registry is not None
        store.append(None, Exact(1), store.registry.event("Placed", Placed(1)), aggregate=ORDER)  # type: ignore[arg-type]
