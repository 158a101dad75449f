"""The batches of an import: one statement each, bounded by lines and bytes, and the line that one is refused for."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore
from pupsourcing_sa.errors import ImportFailed
from pupsourcing_sa.jsonlines import import_events, parse_event
from tests.fix_store import make_event, make_named_tables, make_tables


def line(number: int, aggregate: object = "a", **given: object) -> str:
    fields = {"aggregate_type": "User", "aggregate_id": str(aggregate), "event_type": "A", "payload": {"n": number}}
    return json.dumps(fields | given)


@pytest.fixture
def store(engine: Engine) -> EventStore:
    return EventStore(make_tables(engine))


def numbers(engine: Engine, store: EventStore) -> list[int]:
    with Session(engine) as session:
        return [found.json()["n"] for found in store.read_events(session, limit=10_000)]


def test_a_batch_is_one_statement_in_the_order_of_the_lines(engine: Engine, store: EventStore, statements: list[str]):
    chance = random.Random(1)
    names = [chance.randrange(30) for _ in range(400)]
    batches: list[tuple[int, int]] = []
    import_events(
        sessionmaker(engine),
        store,
        ("\n" if number == 250 else line(number, name) for number, name in enumerate(names)),
        batch_size=150,
        on_batch=lambda *batch: batches.append(batch),
    )
    assert batches == [(150, 150), (301, 150), (400, 99)]
    assert len([statement for statement in statements if "INSERT" in statement]) == 3
    with Session(engine) as session:
        found = store.read_events(session, limit=1000)
    given = [(number, str(name)) for number, name in enumerate(names) if number != 250]
    assert [(event.json()["n"], event.aggregate_id) for event in found] == given
    versions: Counter[str] = Counter()
    for event in found:
        versions[event.aggregate_id] += 1
        assert event.aggregate_version == versions[event.aggregate_id]


@pytest.mark.parametrize(("batch_bytes", "sizes"), [(1, [1] * 6), (1000, [3, 3]), (2000, [5, 1]), (10**6, [6])])
def test_a_batch_ends_with_the_line_that_reaches_its_bytes(engine, store, batch_bytes: int, sizes: list[int]):
    batches: list[int] = []
    lines = [line(number, trace_id="x" * 300) for number in range(6)]
    assert all(400 < len(text) < 500 for text in lines)
    import_events(
        sessionmaker(engine),
        store,
        lines,
        batch_bytes=batch_bytes,
        on_batch=lambda last_line, events: batches.append(events),
    )
    assert batches == sizes
    assert numbers(engine, store) == list(range(6))


def test_a_line_is_read_after_the_batches_before_it_are_committed(engine: Engine, store: EventStore):
    """An import of a pipe shows each batch at once, and keeps one batch in memory."""
    seen: list[int] = []

    def lines() -> Any:
        for number in range(6):
            seen.append(len(numbers(engine, store)))
            yield line(number)

    import_events(sessionmaker(engine), store, lines(), batch_size=2)
    assert seen == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"event_id": str(UUID(int=1))}, "event ids must be unique in the log"),  # of an event in the log
        ({"event_id": str(UUID(int=2))}, "event ids must be unique in the log"),  # of the batch's first line
        ({"correlation_id": "".join(map(str, range(5000)))}, "correlation_id is too long, with"),
        ({"payload": {"n": "\0"}}, "has a NUL character, which JSONB cannot store"),
    ],
    ids=["id-in-the-log", "id-in-the-batch", "correlation-id", "payload"],
)
@pytest.mark.parametrize("place", [1, 6, 19])
def test_the_error_names_the_line(engine: Engine, bad: dict[str, object], reason: str, place: int):
    """All lines are of one aggregate, and PostgreSQL reports no line of a statement that it refuses."""
    store = EventStore(make_named_tables(engine, "default", payload=JSONB))
    with Session(engine) as session:
        store.append(session, AnyVersion(), [make_event(payload={"n": -1}, event_id=UUID(int=1))])
        session.commit()
    lines = [line(number) for number in range(20)]
    lines[0] = line(0, event_id=str(UUID(int=2)))
    lines[place] = line(place, **bad)
    with pytest.raises(ImportFailed, match=reason) as caught:
        import_events(sessionmaker(engine), store, lines)
    assert (caught.value.line, caught.value.first_line) == (place + 1, 1)
    assert numbers(engine, store) == [-1]


def test_a_batch_that_is_too_large_for_one_statement_is_appended_in_parts(engine: Engine, store: EventStore):
    class Limited(EventStore):
        def append_many(self, session: Any, appends: Any) -> Any:
            appends = list(appends)
            if len(appends) > 3:
                raise ValueError("too much")
            return super().append_many(session, appends)

    assert import_events(sessionmaker(engine), Limited(store.tables), map(line, range(11))) == 11
    assert numbers(engine, store) == list(range(11))


def test_a_byte_order_mark_is_skipped():
    assert parse_event("\ufeff" + line(1)).json() == parse_event(line(1).encode("utf-8-sig")).json() == {"n": 1}
