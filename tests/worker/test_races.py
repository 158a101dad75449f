"""Lost races of a partition: pure values, the turn lock, and whole workers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import ForeignKey, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pupsourcing_sa import Exact, NoStream, PersistedEvent, consumer
from pupsourcing_sa.worker.processing.races import Races, TurnPeriod, retry_delay
from pupsourcing_sa.worker.processing.turn_lock import TurnLock
from tests.fix_store import make_event
from tests.fix_worker import Fleet, Recorder
from tests.waiting import patiently


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey(Parent.id))


def create(fleet: Fleet) -> None:
    Base.metadata.drop_all(fleet.engine)
    Base.metadata.create_all(fleet.engine)


class TestRaces:
    @pytest.mark.parametrize(
        ("events", "failed", "expected"), [(500, None, 250), (1, None, 1), (500, 0, 500), (500, 7, 7), (1, 0, 1)]
    )
    def test_the_next_batch(self, events: int, failed: int | None, expected: int):
        races = Races(max_events=3, clean=5).lost(events, failed)
        assert (races.max_events, races.clean, races.is_contended) == (expected, 0, True)

    def test_the_size_grows_after_ten_clean_batches_until_the_batch_is_full(self):
        races, sizes = Races().lost(10, None), []
        while races.is_contended:
            sizes.append(races.max_events)
            races = races.won(20, is_alone=True)
        assert sizes == [5] * 10 + [10] * 10 + [20] * 10
        assert races.won(20, is_alone=True) is races

    def test_a_lost_race_ends_a_row_of_clean_batches(self):
        races = Races().lost(8, None)
        for _ in range(9):
            races = races.won(100, is_alone=True)
        races = races.lost(4, 0)
        for _ in range(9):
            races = races.won(100, is_alone=True)
        assert races.max_events == 4
        assert races.won(100, is_alone=True).max_events == 8

    def test_batches_beside_other_partitions_begin_small_and_are_full_in_turns(self):
        races, sizes = Races(), []
        for _ in range(7):
            sizes.append(races.limit(500, is_alone=False))
            races = races.won(500, is_alone=False)
        assert sizes == [16, 32, 64, 128, 256, 500, 500]
        assert races.won(500, is_alone=False) is races
        races = races.lost_beside()
        assert (races.limit(500, is_alone=True), races.limit(500, is_alone=False)) == (500, 16)
        assert races.won(500, is_alone=True) is races
        assert (races.limit(3, is_alone=False), Races(8).limit(500, is_alone=True)) == (3, 8)


def test_a_period_of_turns_gets_longer_if_the_last_one_did_not_help():
    period = TurnPeriod().lost(100.0)
    assert period == TurnPeriod(105.0, 5.0)
    assert period.lost(104.0) is period
    lengths = []
    for _ in range(6):
        period = period.lost(period.until + 1)
        lengths.append(period.seconds)
    assert lengths == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    assert period.lost(period.until + 599).seconds == 60.0
    assert period.lost(period.until + 600).seconds == 5.0


def test_the_delay_is_a_few_milliseconds_and_grows_only_after_many():
    for losses in range(1, 22):
        assert retry_delay(losses, 0.0) == 0.003
        assert 0.0009 < retry_delay(losses, 1.0) < 0.0011
    assert 0.003 < retry_delay(25, 0.0) < retry_delay(1000, 0.0) == 0.05


class TestTurnLock:
    """The clock shows 1, unless a test sets it."""

    def setup_method(self) -> None:
        self.now = 1.0
        self.running: list[str] = []
        self.most = 0

    async def run(self, lock: TurnLock, name: str) -> bool:
        async with lock.turn() as is_alone:
            self.running.append(name)
            self.most = max(self.most, len(self.running))
            for _ in range(3):
                await asyncio.sleep(0)
            self.running.remove(name)
        return is_alone

    def lock(self, max_wait: float = patiently(30)) -> TurnLock:
        return TurnLock(max_wait, clock=lambda: self.now)

    def test_partitions_run_side_by_side_until_one_loses(self):
        async def main() -> None:
            lock = self.lock()
            assert not any(await asyncio.gather(*(self.run(lock, name) for name in "abc")))
            assert self.most == 3
            lock.lost()
            self.most = 0
            assert all(await asyncio.gather(*(self.run(lock, name) for name in "abc")))
            assert self.most == 1
            self.now = 100.0
            assert not await self.run(lock, "a")

        asyncio.run(main())

    def test_a_turn_waits_for_partitions_that_run_already(self):
        async def main() -> None:
            lock = self.lock()
            running = asyncio.create_task(self.run(lock, "a"))
            await asyncio.sleep(0)
            lock.lost()
            assert await self.run(lock, "b")
            assert self.most == 1
            await running

        asyncio.run(main())

    def test_a_handler_that_hangs_does_not_stop_the_other_partitions(self):
        async def main() -> None:
            lock = self.lock(max_wait=0.01)
            async with lock.turn():
                lock.lost()
                assert not await self.run(lock, "b")
            assert await self.run(lock, "b")
            async with lock.turn() as is_alone:
                assert is_alone
                assert not await self.run(lock, "c")

        asyncio.run(main())

    def test_a_cancelled_partition_keeps_no_lock(self):
        async def main() -> None:
            lock = self.lock()
            async with lock.turn():
                lock.lost()
                waiting = asyncio.create_task(self.run(lock, "a"))
                for _ in range(3):
                    await asyncio.sleep(0)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
            assert await self.run(lock, "b")

        asyncio.run(main())


def test_after_a_lost_race_the_batch_locks_its_rows_early(sync_fleet: Fleet):
    """The application writes in the first attempt; in the second it waits for the batch."""
    fleet, recorder = sync_fleet, Recorder()
    create(fleet)
    fleet.query("INSERT INTO parents VALUES (1, 0)", commit=True)
    handled: list[int] = []
    attempts: list[bool] = []

    def application() -> bool:
        try:
            fleet.query("SET LOCAL lock_timeout = 10; UPDATE parents SET number = number + 100", commit=True)
        except DBAPIError:
            return False
        return True

    @consumer("all", batch_size=8, max_attempts=1)
    def handle(session: Session, event: PersistedEvent) -> None:
        handled.append(event.global_position)
        with session.no_autoflush:
            session.get_one(Parent, 1).number += 1
        if event.global_position == 3 and len(attempts) < 2:
            attempts.append(application())

    fleet.append(8)
    fleet.worker(handle, telemetry=recorder).drain()
    assert attempts == [True, False]
    assert handled == [*range(1, 9), *range(1, 9)]
    assert fleet.query("SELECT number FROM parents")[0][0] == 108
    assert recorder.named("worker.event_failed") == []


def test_partitions_that_insert_the_same_row_count_nothing(sync_fleet: Fleet):
    fleet, recorder = sync_fleet, Recorder()
    create(fleet)
    both, calls = threading.Barrier(2, timeout=patiently(30)), [0]

    @consumer("all", partitions=2, max_attempts=1)
    def handle(session: Session, event: PersistedEvent) -> None:
        calls[0] += 1
        parent = session.get(Parent, 1) or Parent(id=1, number=0)
        with suppress(threading.BrokenBarrierError):
            both.wait()
        both.abort()  # only the first attempts meet
        parent.number += 1
        session.add(parent)

    fleet.append(4)
    fleet.worker(handle, telemetry=recorder).drain()
    assert fleet.query("SELECT number FROM parents")[0][0] == 4
    assert calls[0] > 4
    assert recorder.named("worker.event_failed") == recorder.named("worker.parked") == []


def test_a_row_that_a_foreign_key_needs_is_seen_in_a_new_snapshot(drivers: Fleet):
    fleet, recorder = drivers, Recorder()
    create(fleet)
    parents = ["INSERT INTO parents VALUES (1, 0)"]

    def add(session: Session) -> None:
        if parents:
            fleet.query(parents.pop(), commit=True)
        session.add(Child(id=1, parent_id=1))
        session.flush()

    fleet.append()
    fleet.worker(handler(fleet, add, max_attempts=1), telemetry=recorder).drain()
    assert fleet.query("SELECT count(*) FROM children")[0][0] == 1
    assert recorder.named("worker.event_failed") == []


def test_a_violation_counts_from_the_second_one(drivers: Fleet):
    fleet, recorder = drivers, Recorder()
    create(fleet)
    fleet.query("INSERT INTO parents VALUES (1, 0)", commit=True)

    def add(session: Session) -> None:
        session.execute(text("INSERT INTO parents VALUES (1, 0)"))

    fleet.append()
    with pytest.raises(IntegrityError):
        fleet.worker(handler(fleet, add)).drain()
    fleet.start(fleet.worker(handler(fleet, add, max_attempts=3), telemetry=recorder))
    fleet.wait(lambda: recorder.named("worker.parked"))
    assert [data["attempts"] for data in recorder.named("worker.event_failed")] == [1, 2]
    assert len(recorder.named("worker.batch_retried")) == 1


def test_an_append_that_loses_a_race_is_retried(drivers: Fleet):
    fleet, recorder = drivers, Recorder()
    mine = [make_event(aggregate_type="Other", aggregate_id="o1", event_type="Mine")]
    others = [make_event(aggregate_type="Other", aggregate_id="o1", event_type="Theirs")]

    def append(session: Session) -> None:
        version = fleet.store.aggregate_version(session, "Other", "o1")
        if others:
            with Session(fleet.engine) as other:
                fleet.store.append(other, NoStream(), [others.pop()])
                other.commit()
        fleet.store.append(session, Exact(version) if version else NoStream(), mine)

    fleet.append()
    worker = fleet.worker(handler(fleet, append, max_attempts=1, aggregate_types={"User"}), telemetry=recorder)
    worker.drain()
    types = "SELECT event_type FROM events WHERE aggregate_type = 'Other' ORDER BY aggregate_version"
    assert [row[0] for row in fleet.query(types)] == ["Theirs", "Mine"]
    assert len(recorder.named("worker.batch_retried")) == 1
    assert recorder.named("worker.event_failed") == []


def handler(fleet: Fleet, handle: Any, **options: Any) -> Any:
    """Return a consumer of the kind that fits the worker."""
    if not fleet.is_async:
        return consumer("all", **options)(lambda session, _: handle(session))

    @consumer("all", **options)
    async def handle_async(session: Any, event: PersistedEvent) -> None:
        await session.run_sync(handle)

    return handle_async
