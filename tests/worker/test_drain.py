"""Draining: everything up to now, then return."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, AsyncEventStore, PersistedEvent, consumer
from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker._drain import Drain
from tests.fix_store import make_async_engine, make_event
from tests.fix_worker import Fleet, stop_after_start


def test_it_processes_all_there_is_and_returns(both_fleets: Fleet):
    fleet = both_fleets
    fleet.append(250)
    fleet.worker(fleet.see("all")).drain()
    assert fleet.seen("all") == list(range(1, 251))
    assert fleet.checkpoint("all").last_position == 250


def test_the_next_drain_continues_from_there(fleet: Fleet):
    worker = fleet.worker(fleet.see("all"))
    for _ in range(3):
        fleet.append(2)
        worker.drain()
    assert fleet.seen("all") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_again_with_an_engine_for_some_tables(engine: Engine, driver: str):
    """Connections of the first event loop are of no use in the second."""
    fleet, seen = Fleet(engine, is_async=True, driver=driver), []

    @consumer("all")
    async def see(session: AsyncSession, event: PersistedEvent) -> None:
        seen.append(event.global_position)

    async_engine = make_async_engine(engine, driver)
    factory = async_sessionmaker(binds=dict.fromkeys(fleet.tables.metadata.sorted_tables, async_engine))
    worker = Worker(factory, AsyncEventStore(fleet.store.tables), [see], tables=fleet.tables)
    for _ in range(2):
        fleet.append(1)
        worker.drain()
    assert seen == [1, 2]


def test_an_empty_log(fleet: Fleet):
    fleet.worker(fleet.see("all")).drain()
    assert fleet.seen("all") == []


def test_it_leaves_what_is_behind_an_append_in_flight(fleet: Fleet, engine: Engine):
    fleet.append(1)
    with Session(engine) as in_flight:
        fleet.store.append(in_flight, AnyVersion(), [make_event("u9")])
        fleet.append(1)
        fleet.worker(fleet.see("all")).drain()
        assert fleet.seen("all") == [1]
        in_flight.commit()
    fleet.worker(fleet.see("all")).drain()
    assert fleet.seen("all") == [1, 2, 3]


def test_the_exception_of_a_handler_is_raised(both_fleets: Fleet):
    fleet = both_fleets

    def fail(event: PersistedEvent) -> None:
        if event.global_position == 5:
            raise ZeroDivisionError("five")

    fleet.append(10)
    worker = fleet.worker(fleet.see("failing", check=fail), fleet.see("other"))
    with pytest.raises(ZeroDivisionError, match="five") as caught:
        worker.drain()
    assert "while consumer 'failing' handled" in caught.value.__notes__[0]
    assert fleet.seen("failing") == [1, 2, 3, 4]  # what precedes it is committed
    assert fleet.checkpoint("failing").last_position == 4
    assert fleet.seen("other") == list(range(1, 11))


def test_two_failures_are_a_group(fleet: Fleet):
    def fail(event: PersistedEvent) -> None:
        raise ZeroDivisionError

    fleet.append(1)
    with pytest.raises(ExceptionGroup) as caught:
        fleet.worker(fleet.see("one", check=fail), fleet.see("two", check=fail)).drain()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError] * 2


def test_in_a_running_loop(fleet: Fleet):
    fleet.append(3)
    worker = fleet.worker(fleet.see("all"))

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"await worker.serve\(drain=True\)"):
            worker.drain()
        await worker.serve(drain=True)
        await fleet.dispose()

    asyncio.run(main())
    assert fleet.seen("all") == [1, 2, 3]


def test_what_is_no_exception_is_raised_as_well(both_fleets: Fleet):
    """Such as that of pytest.fail() in a handler."""
    fleet = both_fleets

    class Unusual(BaseException): ...

    def fail(event: PersistedEvent) -> None:
        raise Unusual

    fleet.append(1)
    with pytest.raises(Unusual):
        fleet.worker(fleet.see("failing", check=fail)).drain()
    with pytest.raises(BaseExceptionGroup):
        fleet.worker(fleet.see("one", check=fail), fleet.see("two", check=fail)).drain()


def test_a_stop_during_the_start_begins_no_batch(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    fleet.append(1)
    worker = fleet.worker(fleet.see("all"))
    stop_after_start(monkeypatch, Drain)
    worker.drain()
    assert fleet.seen("all") == []
