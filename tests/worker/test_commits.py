"""A handler that commits past the session: what it has written stays, and must not be applied a second time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.errors import HandlerTransactionError, PartitionParkedError
from tests.fix_worker import INSERT, Fleet, Recorder

END = text("SELECT pg_terminate_backend(pg_backend_pid())")
DEADLOCK = text("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40P01'; END $$")


def by_text(session: Session) -> None:
    session.execute(text("COMMIT"))


def by_driver_sql(session: Session) -> None:
    session.connection().exec_driver_sql("COMMIT; BEGIN")


def by_chain(session: Session) -> None:
    session.execute(text("COMMIT AND CHAIN"))


def by_connection(session: Session) -> None:
    session.connection().commit()


def by_driver(session: Session) -> None:
    driver = session.connection().connection.dbapi_connection
    assert driver is not None
    driver.commit()


def then_fails(session: Session) -> None:
    raise ZeroDivisionError


def then_loses_a_race(session: Session) -> None:
    session.execute(DEADLOCK)


def then_loses_the_connection(session: Session) -> None:
    session.execute(END)


def then_rolls_back(session: Session) -> None:
    session.rollback()


class Handling:
    """Makes a consumer that acts at the third event, and writes down what it gets."""

    def __init__(self, *acts: Callable[[Session], None], name: str = "all") -> None:
        self.acts = acts
        self.name = name
        self.given: list[int] = []

    def __call__(self, session: Session, event: PersistedEvent) -> None:
        self.given.append(event.global_position)
        session.execute(INSERT, {"consumer": self.name, "position": event.global_position})
        if event.global_position == 3:
            for act in self.acts:
                act(session)

    def consumer(self, fleet: Fleet, **options: Any) -> Any:
        if not fleet.is_async:
            return consumer(self.name, **options)(self)

        @consumer(self.name, **options)
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            await session.run_sync(self, event)

        return handle


def is_parked(fleet: Fleet, name: str = "all") -> bool:
    found = fleet.checkpoint(name)
    return found is not None and found.parked_at is not None


def assert_parked(fleet: Fleet, *handlings: Handling, last: int) -> None:
    """Run a consumer for each: it is parked at once, and for good. No event is given to its handler twice."""
    recorder = Recorder()
    fleet.append(5)
    consumers = [handling.consumer(fleet) for handling in handlings]
    fleet.start(fleet.worker(*consumers, fleet.see("other"), telemetry=recorder))
    for handling in handlings:
        fleet.wait(lambda name=handling.name: is_parked(fleet, name))
    fleet.append()
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5, 6])
    fleet.stop()
    for handling in handlings:
        assert handling.given == list(range(1, last + 1)), handling.name
        seen = fleet.seen(handling.name)
        assert seen[:3] == [1, 2, 3], handling.name
        assert len(seen) == len(set(seen)), handling.name
        found = fleet.checkpoint(handling.name)
        assert (found.last_position, found.failed_position, found.attempts, found.retry_at) == (0, 1, 1, None)
        assert f"all or some writes of the events from 1 to {last} are committed" in found.error
    parked = [(data["consumer"], data["global_position"], data["attempts"]) for data in recorder.named("worker.parked")]
    assert sorted(parked) == sorted((handling.name, 1, 1) for handling in handlings)
    assert recorder.named("worker.event_failed") == recorder.named("worker.batch_retried") == []


def test_it_is_parked_at_once(drivers: Fleet):
    commits = [by_text, by_chain, by_connection, by_driver]
    if drivers.driver != "asyncpg":  # which takes one command at a time
        commits.append(by_driver_sql)
    assert_parked(drivers, *(Handling(commit, name=commit.__name__) for commit in commits), last=5)


def test_even_when_something_else_happens_after_it(drivers: Fleet):
    acts = [then_fails, then_loses_a_race, then_loses_the_connection, then_rolls_back]
    assert_parked(drivers, *(Handling(by_text, act, name=act.__name__) for act in acts), last=3)


def test_of_a_batch_handler(fleet: Fleet):
    class Batches:
        name = "all"

        def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
            session.execute(INSERT, [{"consumer": "all", "position": event.global_position} for event in events])
            session.execute(text("COMMIT"))

    fleet.append(5)
    fleet.start(fleet.worker(Batches()))
    fleet.wait(lambda: is_parked(fleet))
    fleet.stop()
    assert fleet.seen("all") == [1, 2, 3, 4, 5]
    assert "all or some writes of the events from 1 to 5 are committed" in fleet.checkpoint("all").error


def test_a_drain_raises_it_and_parks(both_fleets: Fleet):
    fleet, handling = both_fleets, Handling(by_text)
    fleet.append(5)
    with pytest.raises(HandlerTransactionError, match="events from 1 to 5 are committed"):
        fleet.worker(handling.consumer(fleet)).drain()
    with pytest.raises(PartitionParkedError, match="parked on the event at 1"):
        fleet.worker(handling.consumer(fleet)).drain()
    assert handling.given == [1, 2, 3, 4, 5]


def test_it_continues_after_an_operator_has_dealt_with_it(fleet: Fleet):
    fleet.append(5)
    with pytest.raises(HandlerTransactionError):
        fleet.worker(Handling(by_text).consumer(fleet)).drain()
    stays = fleet.seen("all")[-1]
    fleet.query("UPDATE consumer_checkpoints SET last_position = :last, parked_at = NULL", last=stays, commit=True)
    fleet.worker(Handling().consumer(fleet)).drain()
    assert fleet.seen("all") == [1, 2, 3, 4, 5]


def test_no_batch_is_run_while_it_cannot_be_parked(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    @contextmanager
    def locked() -> Iterator[None]:
        with fleet.engine.connect() as connection:
            connection.execute(text("SELECT FROM consumer_checkpoints FOR UPDATE"))
            yield

    def refusals() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.message.startswith("handler committed the transaction; cannot")]

    fleet.append(5)
    lock = locked()
    handling = Handling(by_text, lambda session: lock.__enter__())  # the commit has released it
    fleet.start(fleet.worker(handling.consumer(fleet)))
    fleet.wait(lambda: len(refusals()) >= 3)
    assert handling.given == [1, 2, 3, 4, 5]
    assert not is_parked(fleet)
    lock.__exit__(None, None, None)
    fleet.wait(lambda: is_parked(fleet))
    fleet.stop()
    assert handling.given == [1, 2, 3, 4, 5]
    assert {each.levelno for each in refusals()} == {logging.ERROR}


def test_a_rollback_by_sql_is_a_failure_like_others(fleet: Fleet):
    fleet.append(5)
    handling = Handling(lambda session: session.execute(text("ROLLBACK")))
    fleet.start(fleet.worker(handling.consumer(fleet)))
    fleet.wait(lambda: fleet.attempts("all") >= 2)
    found = fleet.checkpoint("all")
    assert (found.last_position, found.failed_position, found.parked_at) == (2, 3, None)
    assert "HandlerTransactionError" in found.error
    assert fleet.seen("all") == [1, 2]


def test_an_error_after_the_commit_of_the_worker_is_ignored(fleet: Fleet):
    """The commit is complete: the checkpoint is moved."""

    def fail(session: Session) -> None:
        raise ZeroDivisionError

    def act(session: Session) -> None:
        sqlalchemy_event.listen(session, "after_commit", fail)

    fleet.append(5)
    handling = Handling(act)
    fleet.start(fleet.worker(handling.consumer(fleet)))
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5])
    fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5, 6])
    assert not is_parked(fleet)
