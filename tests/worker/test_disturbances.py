"""What is no fault of an event is never counted against it, in whatever shape it arrives.

Every consumer here would be parked by the first failure that is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from pupsourcing_sa import PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.classification import is_lost_race, is_outage
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.failures import Failures
from tests.fix_worker import INSERT, Fleet, Recorder

END = text("SELECT pg_terminate_backend(pg_backend_pid())")
DEADLOCK = text("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40P01'; END $$")
CONFLICT = text("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40001'; END $$")

DRIVERS_ERRORS = (DBAPIError, psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError)


class ApplicationError(Exception):
    pass


def as_it_comes(session: Session, harm: Callable[[Session], None]) -> None:
    harm(session)


def wrapped(session: Session, harm: Callable[[Session], None]) -> None:
    try:
        harm(session)
    except DRIVERS_ERRORS as error:
        raise ApplicationError from error


def replaced(session: Session, harm: Callable[[Session], None]) -> None:
    try:
        harm(session)
    except DRIVERS_ERRORS:
        raise ApplicationError from None


def in_a_group(session: Session, harm: Callable[[Session], None]) -> None:
    try:
        harm(session)
    except DRIVERS_ERRORS as error:
        raise ExceptionGroup("several", [ApplicationError(), error]) from None


def forgotten(session: Session, harm: Callable[[Session], None]) -> None:
    """Nothing of the error is left, only the connection knows."""
    with contextlib.suppress(*DRIVERS_ERRORS):
        harm(session)
    raise ApplicationError


def swallowed(session: Session, harm: Callable[[Session], None]) -> None:
    with contextlib.suppress(*DRIVERS_ERRORS):
        harm(session)


def as_exit(session: Session, harm: Callable[[Session], None]) -> None:
    try:
        harm(session)
    except DRIVERS_ERRORS as error:
        raise SystemExit(1) from error


def terminate(session: Session) -> None:
    session.execute(END)


def terminate_bare(session: Session) -> None:
    """The driver's own error, past SQLAlchemy."""
    driver = session.connection().connection.driver_connection
    assert driver is not None
    result = driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    if hasattr(result, "__await__"):
        await_only(result)


def misbehaving(fleet: Fleet, act: Callable[[Session], None], **options: Any) -> Any:
    """A consumer that has an accident with the third event, once."""
    done: list[bool] = []

    def work(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "all", "position": event.global_position})
        if event.global_position == 3 and not done:
            done.append(True)
            act(session)

    @consumer("all", max_attempts=1, **options)
    def handle(session: Session, event: PersistedEvent) -> None:
        work(session, event)

    @consumer("all", max_attempts=1, **options)
    async def handle_async(session: AsyncSession, event: PersistedEvent) -> None:
        await session.run_sync(work, event)

    return handle_async if fleet.is_async else handle


def assert_recovers(fleet: Fleet, consumes: Any) -> Recorder:
    recorder = Recorder()
    fleet.append(5)
    fleet.start(fleet.worker(consumes, telemetry=recorder))
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5] or bool(fleet.attempts("all")))
    assert fleet.seen("all") == [1, 2, 3, 4, 5]
    fleet.stop()
    assert recorder.named("worker.event_failed") == recorder.named("worker.parked") == []
    retried = recorder.named("worker.batch_retried")
    assert {(each["consumer"], each["partition"]) for each in retried} == {("all", 0)}
    assert all(each["retry_after"] > 0 for each in retried)
    return recorder


@pytest.mark.parametrize(
    "shape",
    [as_it_comes, wrapped, replaced, in_a_group, forgotten, swallowed, as_exit],
    ids=lambda shape: shape.__name__,
)
@pytest.mark.parametrize("harm", [terminate, terminate_bare], ids=["sqlalchemy", "driver"])
def test_a_lost_connection(every_fleet: Fleet, shape: Any, harm: Callable[[Session], None]):
    assert_recovers(every_fleet, misbehaving(every_fleet, lambda session: shape(session, harm)))


@pytest.mark.parametrize("shape", [as_it_comes, wrapped, in_a_group, as_exit], ids=lambda shape: shape.__name__)
@pytest.mark.parametrize("statement", [DEADLOCK, CONFLICT], ids=["deadlock", "conflict"])
def test_a_lost_race(every_fleet: Fleet, shape: Any, statement: Any):
    def lose(session: Session) -> None:
        session.execute(statement)

    assert_recovers(every_fleet, misbehaving(every_fleet, lambda session: shape(session, lose)))


@pytest.mark.parametrize(
    "accident",
    ["PERFORM pg_terminate_backend(pg_backend_pid())", "RAISE EXCEPTION 'as if' USING ERRCODE = '40001'"],
    ids=["connection", "conflict"],
)
@pytest.mark.parametrize("when", ["AFTER INSERT", "CONSTRAINT"], ids=["flush", "commit"])
def test_in_the_flush_and_with_the_commit(every_fleet: Fleet, accident: str, when: str):
    """A sequence remembers, whatever is rolled back, that it has happened."""
    fleet = every_fleet
    fleet.query("CREATE SEQUENCE accidents", commit=True)
    fleet.query(
        "CREATE FUNCTION have_accident() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('accidents') = 1 THEN {accident}; END IF; RETURN NULL; END $$",
        commit=True,
    )
    trigger = "TRIGGER accident AFTER INSERT ON seen"
    if when == "CONSTRAINT":
        trigger = f"CONSTRAINT {trigger} DEFERRABLE INITIALLY DEFERRED"
    fleet.query(f"CREATE {trigger} FOR EACH ROW WHEN (NEW.position = 3) EXECUTE FUNCTION have_accident()", commit=True)
    assert_recovers(fleet, misbehaving(fleet, lambda session: None))


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError, TimeoutError, FileNotFoundError, SystemExit, asyncio.CancelledError]
)
def test_what_befalls_the_handler_elsewhere_is_counted(every_fleet: Fleet, error: type[BaseException]):
    """The connection is asked, and is well."""

    def fail(session: Session) -> None:
        raise error("somewhere else")

    fleet, recorder = every_fleet, Recorder()
    fleet.append(5)
    fleet.start(fleet.worker(misbehaving(fleet, fail), fleet.see("other"), telemetry=recorder))
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5] and fleet.seen("all") == [1, 2, 3, 4, 5])
    # The first time it only told which event to try alone, the accident does not happen twice.
    assert recorder.named("worker.batch_retried") == []


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError, TimeoutError, FileNotFoundError, SystemExit, asyncio.CancelledError]
)
def test_what_befalls_the_handler_elsewhere_again_and_again_parks(every_fleet: Fleet, error: type[BaseException]):
    def fail(event: PersistedEvent) -> None:
        raise error("somewhere else")

    fleet = every_fleet
    fleet.append(5)
    fleet.start(fleet.worker(fleet.see("failing", check=fail, max_attempts=2), fleet.see("other")))
    fleet.wait(lambda: fleet.attempts("failing") == 2 and fleet.seen("other") == [1, 2, 3, 4, 5])
    assert fleet.checkpoint("failing").parked_at is not None
    assert "somewhere else" in fleet.checkpoint("failing").error


def test_an_outage_is_told_less_and_less_often_and_waited_for_a_little(caplog: pytest.LogCaptureFixture):
    recorder = Recorder()

    async def execution(name: str, work: Any) -> Any:
        pytest.fail("nothing is recorded")

    failures = Failures(
        Checkpoint(WorkerTables(), "all", 3),
        None,
        worker_id=None,
        execution=execution,
        name="test",
        config=WorkerConfig(),
        hooks=Hooks(recorder),
    )
    away = OperationalError("SELECT", {}, Exception("away"))
    pauses = [asyncio.run(failures.disturbed(away)) for _ in range(20)]
    assert 0.25 < pauses[0] <= 0.5
    assert pauses[-1] == max(pauses) == 2.0
    told = [(record.message, record.levelno, record.failures, record.partition) for record in caplog.records]
    assert told == [("batch could not be run; will try again", logging.WARNING, 2**power, 3) for power in range(5)]
    assert [each["retry_after"] for each in recorder.named("worker.batch_retried")] == pauses
    failures.undisturbed()
    assert asyncio.run(failures.disturbed(away)) <= 0.5


def test_what_is_an_outage():
    class Bare(Exception):
        sqlstate: str | None = "08006"

    error = Bare()
    assert is_outage(error)
    assert not is_lost_race(error)
    error.sqlstate = "40P01"
    assert is_lost_race(error)
    assert not is_outage(error)
    error.sqlstate = None
    assert not is_outage(error)
    assert is_outage(psycopg.OperationalError("the connection is closed"))
    assert not is_outage(psycopg.ProgrammingError("no such cursor"))
    assert not is_outage(sqlite3.OperationalError("no such table"))
    circular = ApplicationError()
    circular.__cause__ = circular
    assert not is_outage(circular)
