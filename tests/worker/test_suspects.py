"""Events whose handlers end the connection each time: found, shown and never counted, while others continue."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.errors import DiskFull, SerializationFailure
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.postgres.errors import is_query_canceled
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.processing.failures import Failures
from pupsourcing_sa.worker.processing.outcomes import BatchInterrupted
from tests.fix_processing import unbound_context
from tests.fix_worker import INSERT, Fleet, Recorder

END = text("SELECT pg_terminate_backend(pg_backend_pid())")
DEADLOCK = text("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40P01'; END $$")


class Harmful:
    """Makes a consumer that does harm with the event at one position, until it is healed. The first failure parks."""

    def __init__(self, position: int, harm: Callable[[Session], None]) -> None:
        self.position = position
        self.harm = harm
        self.is_healed = threading.Event()

    def __call__(self, session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "all", "position": event.global_position})
        if event.global_position == self.position and not self.is_healed.is_set():
            self.harm(session)

    def consumer(self, fleet: Fleet) -> Any:
        if not fleet.is_async:
            return consumer("all", max_attempts=1)(self)

        @consumer("all", max_attempts=1)
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            await session.run_sync(self, event)

        return handle

    def by_batch(self) -> Any:
        class Batches:
            name, max_attempts = "all", 1

            @staticmethod
            def handle_batch(session: Session, events: list[PersistedEvent]) -> None:
                for event in events:
                    self(session, event)

        return Batches()


def end(session: Session) -> None:
    session.execute(END)


def think_for_too_long(fleet: Fleet) -> Callable[[Session], None]:
    """Idle for longer than the server allows. The next statement notices it."""

    def think(session: Session) -> None:
        session.execute(text("SET idle_in_transaction_session_timeout = 1"))
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        fleet.wait(lambda: not fleet.query("SELECT FROM pg_stat_activity WHERE pid = :pid", pid=pid))

    return think


def assert_shown_and_passed(fleet: Fleet, harmful: Harmful, consumes: Any, last: int) -> None:
    recorder = Recorder()
    position = harmful.position
    fleet.append(last)
    fleet.start(fleet.worker(consumes, telemetry=recorder))
    fleet.wait(lambda: fleet.checkpoint("all") is not None and fleet.checkpoint("all").error is not None)
    found = fleet.checkpoint("all")
    assert (found.last_position, found.failed_position) == (position - 1, position)
    assert (found.attempts, found.parked_at) == (0, None)
    assert found.retry_at >= found.failed_at
    assert fleet.seen("all") == list(range(1, position))
    # Another worker finds what it has to know.
    fleet.stop()
    other = Recorder()
    fleet.start(fleet.worker(consumes, telemetry=other))
    fleet.wait(lambda: len(other.named("worker.batch_retried")) >= 6)
    assert fleet.checkpoint("all").attempts == 0
    harmful.is_healed.set()
    fleet.wait(lambda: fleet.seen("all") == list(range(1, last + 1)))
    found = fleet.checkpoint("all")
    assert (found.attempts, found.failed_position, found.error, found.retry_at) == (0, None, None, None)
    fleet.wait(lambda: bool(other.named("worker.recovered")))
    assert other.named("worker.recovered")[0]["failures"] >= 5
    for each in (recorder, other):
        assert each.named("worker.event_failed") == each.named("worker.parked") == []


def test_one_that_ends_its_connection(drivers: Fleet):
    harmful = Harmful(3, end)
    assert_shown_and_passed(drivers, harmful, harmful.consumer(drivers), 5)


def test_one_that_thinks_for_too_long(every_fleet: Fleet):
    harmful = Harmful(3, think_for_too_long(every_fleet))
    assert_shown_and_passed(every_fleet, harmful, harmful.consumer(every_fleet), 5)


def exceed_the_timeout(session: Session) -> None:
    session.execute(text("SET LOCAL statement_timeout = 1"))
    session.execute(text("SELECT pg_sleep(60)"))


def test_one_whose_statement_always_exceeds_the_timeout(both_fleets: Fleet):
    harmful = Harmful(3, exceed_the_timeout)
    assert_shown_and_passed(both_fleets, harmful, harmful.consumer(both_fleets), 5)


def test_a_drain_raises_its_error_and_commits_the_events_before_it(both_fleets: Fleet):
    harmful = Harmful(3, exceed_the_timeout)
    both_fleets.append(5)
    with pytest.raises(DBAPIError) as caught:
        both_fleets.worker(harmful.consumer(both_fleets)).drain()
    assert is_query_canceled(caught.value)
    assert both_fleets.seen("all") == [1, 2]


def test_one_of_a_batch_is_searched_for(fleet: Fleet):
    harmful = Harmful(7, end)
    assert_shown_and_passed(fleet, harmful, harmful.by_batch(), 10)


def test_what_was_counted_stays_counted(fleet: Fleet):
    harmful = Harmful(3, end)
    fleet.append(2)
    fleet.worker(fleet.see("all")).drain()
    fleet.append()
    fleet.query("UPDATE consumer_checkpoints SET failed_position = 3, attempts = 7, error = 'before'", commit=True)
    fleet.start(fleet.worker(harmful.by_batch()))
    fleet.wait(lambda: fleet.checkpoint("all").error != "before")
    found = fleet.checkpoint("all")
    assert (found.failed_position, found.attempts, found.parked_at) == (3, 7, None)


def test_a_race_that_is_always_lost_is_logged_and_not_recorded(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    """It holds up no event before it. Which of the transactions is at fault is not known."""
    harmful, recorder = Harmful(3, lambda session: session.execute(DEADLOCK)), Recorder()
    fleet.append(5)
    fleet.start(fleet.worker(harmful.consumer(fleet), telemetry=recorder))
    fleet.wait(lambda: len(recorder.named("worker.batch_retried")) >= 70)
    found = fleet.checkpoint("all")
    assert (found.last_position, found.failed_position, found.error) == (2, None, None)
    told = [record for record in caplog.records if record.message == "batch was interrupted; will retry"]
    assert [record.failures for record in told][:2] == [32, 64], "one lost now and then is nothing"
    harmful.is_healed.set()
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5])


def test_batches_that_lose_races_get_smaller_and_grow_again(fleet: Fleet):
    """The application may update the same rows: half of the first events lose, each once."""
    lost: set[int] = set()

    def lose(event: PersistedEvent) -> None:
        position = event.global_position
        if position < 40 and position % 2 and position not in lost:
            lost.add(position)
            raise OperationalError("UPDATE", {}, SerializationFailure())

    recorder = Recorder()
    fleet.append(200)
    fleet.worker(fleet.see("all", check=lose), telemetry=recorder).drain()
    assert fleet.seen("all") == list(range(1, 201))
    sizes = [each["events"] for each in recorder.named("worker.batch") if "events" in each]
    # Event 1 loses as the first of its batch, and event 3 after two others.
    assert sizes[:3] == [2, 2, 2]
    assert max(sizes) == 16  # twice as many after ten batches


class Table:
    """An execution for failures that counts what would have been recorded."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.works = 0
        self.is_full = is_full

    async def __call__(self, name: str, work: Any) -> Any:
        self.works += 1
        if self.is_full:
            raise FULL

    async def close(self) -> None: ...


FULL = OperationalError("INSERT", {}, DiskFull("could not extend file"))
AWAY = OperationalError("SELECT", {}, Exception("away"))


def failures(table: Table, **config: Any) -> Failures:
    return Failures(unbound_context(table, config=WorkerConfig(**config)))


def interrupted(cause: Exception = AWAY) -> BatchInterrupted:
    class Event:
        event_id, event_type, global_position = "id", "E", 3

    events: Any = [Event()]
    error = BatchInterrupted(events, None)
    error.__cause__ = cause
    return error


def test_when_an_event_is_suspected():
    async def main() -> None:
        told = failures(Table())
        for _ in range(5):
            await told.interrupted(lost_race)
        for _ in range(2):
            assert not told.is_suspicious(interrupted())
            await told.interrupted(interrupted())
            await told.interrupted(AWAY)  # the server starts again, which says nothing in between
        assert told.is_suspicious(interrupted())
        assert not told.is_suspicious(AWAY)
        assert not told.is_suspicious(lost_race)
        told.batch_completed()  # because the server has not noticed yet that the connection is lost, and keeps the lock
        assert told.is_suspicious(interrupted())
        told.events_handled(0)
        assert not told.is_suspicious(interrupted())

    class Conflict(Exception):
        sqlstate = "40001"

    lost_race = interrupted(OperationalError("", {}, Conflict()))
    asyncio.run(main())


def test_an_outage_alone_is_not_blamed_on_an_event():
    async def main() -> None:
        table = Table()
        told = failures(table)
        for _ in range(20):
            await told.interrupted(AWAY)
            assert not told.is_suspicious(interrupted())
        assert table.works == 0

    asyncio.run(main())


def test_pauses_grow_when_an_event_is_shown(caplog: pytest.LogCaptureFixture):
    """The server may be crashing with each attempt."""

    async def main() -> list[float]:
        return [await told.interrupted(interrupted(), is_isolated=True) for _ in range(20)]

    table = Table()
    told = failures(table, retry_delay=1.0, max_retry_delay=60.0)
    pauses = asyncio.run(main())
    assert max(pauses[:5]) <= 2.0
    assert min(pauses[-5:]) >= 45.0
    assert table.works == 16  # from the fifth on
    shown = [each for each in caplog.records if each.message.startswith("handling the event keeps losing")]
    assert [each.levelno for each in shown] == [logging.ERROR] + [logging.WARNING] * 15
    assert [each.exc_info is not None for each in shown] == [True] + [False] * 15
    assert {each.global_position for each in shown} == {3}
    assert [each.failures for each in shown] == list(range(5, 21))
    assert [each.retry_after for each in shown] == pauses[4:]


def test_a_full_disk_is_retried_soon_and_logged_rarely(caplog: pytest.LogCaptureFixture):
    """It looks like a harmful event, so one is shown; but the partition has to continue when there is space again."""

    async def main() -> list[float]:
        return [await told.interrupted(interrupted(FULL), is_isolated=True) for _ in range(40)]

    table = Table(is_full=True)
    told = failures(table, retry_delay=1.0, max_retry_delay=60.0)
    assert max(asyncio.run(main())) <= 2.0
    assert table.works == 36
    logged = [(record.message, record.levelno) for record in caplog.records]
    assert logged == [
        ("batch was interrupted; will retry", logging.WARNING),
        ("handling the event keeps being interrupted; will retry", logging.ERROR),
        ("cannot record the failure", logging.WARNING),
        *[("handling the event keeps being interrupted; will retry", logging.WARNING)] * 3,  # the 8th, 16th and 32nd
    ]
