"""Typed consumers in a worker: events of all releases arrive as current classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, PersistedEvent, Recorded, TypedConsumer
from pupsourcing_sa.errors import EventDecodingError
from tests.fix_store import make_event
from tests.fix_worker import Fleet
from tests.store.test_typed import Both, Moved, Placed, registry_of_version

REGISTRY = registry_of_version(3)


def consumer_of(fleet: Fleet, found: list[Any], *, is_batch: bool) -> TypedConsumer:
    """Return a consumer that notes the data, the part and the cause of what its handlers append."""
    fleet.store = EventStore(fleet.store.tables, registry=REGISTRY)
    typed = TypedConsumer("typed", REGISTRY)

    def note(event: Recorded[Any]) -> None:
        found.append((event.data, event.part))

    if is_batch:

        @typed.handles_batch(Placed)
        def placed_together(session: Session, events: Sequence[Recorded[Placed]]) -> None:
            found.append([event.data for event in events])

    elif fleet.is_async:

        @typed.handles(Placed)
        async def placed_async(session: AsyncSession, event: Recorded[Placed]) -> None:
            note(event)

    else:

        @typed.handles(Placed)
        def placed(session: Session, event: Recorded[Placed]) -> None:
            note(event)

    if fleet.is_async:

        @typed.handles(Moved)
        async def moved_async(session: AsyncSession, event: Recorded[Moved]) -> None:
            note(event)

    else:

        @typed.handles(Moved)
        def moved(session: Session, event: Recorded[Moved]) -> None:
            note(event)

    return typed


def write(fleet: Fleet) -> None:
    """Append events as three releases did, and some that the consumer does not handle."""
    releases: list[list[Any]] = [
        [Placed(1), Both(2, "Bern"), Moved("nowhere")],
        [Placed(3)],
        [Placed(4), Moved("Chur")],
    ]
    with Session(fleet.engine) as session:
        for version, objects in enumerate(releases, 1):
            store = EventStore(fleet.store.tables, registry=registry_of_version(version))
            store.append(session, AnyVersion(), objects, aggregate=("Order", "o1"))
            store.append(session, AnyVersion(), [make_event("u1")])
        session.commit()


def test_events_of_three_releases(drivers: Fleet):
    found: list[Any] = []
    typed = consumer_of(drivers, found, is_batch=False)
    write(drivers)
    drivers.worker(typed).drain()
    expected = [Placed(20), Placed(20), Moved("Bern"), Placed(30), Placed(4), Moved("Chur")]
    assert [data for data, _ in found] == expected
    assert [part for _, part in found] == [0, 0, 1, 0, 0, 0]


def test_runs_of_a_batch_handler(sync_fleet: Fleet):
    found: list[Any] = []
    typed = consumer_of(sync_fleet, found, is_batch=True)
    write(sync_fleet)
    sync_fleet.worker(typed).drain()
    assert found == [[Placed(20), Placed(20)], (Moved("Bern"), 1), [Placed(30), Placed(4)], (Moved("Chur"), 0)]


@pytest.mark.parametrize("is_batch", [False, True])
def test_an_event_that_cannot_be_decoded_fails_alone(sync_fleet: Fleet, is_batch: bool):
    found: list[Any] = []
    typed = consumer_of(sync_fleet, found, is_batch=is_batch)
    write(sync_fleet)
    sync_fleet.append(aggregate_type="Order", event_type="Moved", payload={"city": 5})
    sync_fleet.append(aggregate_type="Order", event_type="Moved", payload={"city": "Thun"})
    with pytest.raises(EventDecodingError) as caught:
        sync_fleet.worker(typed).drain()
    assert caught.value.position == 10
    assert (Moved("Chur"), 0) in found
    assert sync_fleet.checkpoint("typed").last_position == 8  # the events before it are handled


def test_a_worker_decodes_with_the_registry_of_its_store(sync_fleet: Fleet):
    """Consumers without classes may use ``data``, too."""
    found: list[Any] = []
    consumer_of(sync_fleet, found, is_batch=False)
    write(sync_fleet)

    def note(event: PersistedEvent) -> None:
        found.extend(part.data for part in event.parts())

    sync_fleet.worker(sync_fleet.see("all", check=note, aggregate_types={"Order"})).drain()
    assert found[:3] == [Placed(20), Placed(20), Moved("Bern")]
