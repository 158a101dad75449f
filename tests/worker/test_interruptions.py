"""A failure that is not the events' fault is never counted against them, in whatever shape it is raised.

The table of exceptions is in `test_classification`; these are whole workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.processing.failures import Failures
from tests.fix_processing import unbound_context
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
    """Get the driver's own error, past SQLAlchemy."""
    driver = session.connection().connection.driver_connection
    assert driver is not None
    result = driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    if hasattr(result, "__await__"):
        await_only(result)


def deadlock(session: Session) -> None:
    session.execute(DEADLOCK)


def conflict(session: Session) -> None:
    session.execute(CONFLICT)


class Accidents:
    """A consumer whose handler has an accident at each event from the third on, once: at the third the first of them.

    The first failure that is counted parks it.
    """

    def __init__(self, *accidents: Callable[[Session], None], **options: Any) -> None:
        self.accidents = accidents
        self.number = len(accidents) + 4  # two events before the first accident, and two after the last
        self._options = options
        self._happened: set[int] = set()

    def __call__(self, session: Session, event: PersistedEvent) -> None:
        position = event.global_position
        session.execute(INSERT, {"consumer": "all", "position": position})
        if 0 <= position - 3 < len(self.accidents) and position not in self._happened:
            self._happened.add(position)
            self.accidents[position - 3](session)

    def consumer(self, fleet: Fleet) -> Any:
        options = {"max_attempts": 1} | self._options
        if not fleet.is_async:
            return consumer("all", **options)(self)

        @consumer("all", **options)
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            await session.run_sync(self, event)

        return handle


def assert_nothing_is_counted(fleet: Fleet, accidents: Accidents) -> None:
    recorder = Recorder()
    fleet.append(accidents.number)
    fleet.start(fleet.worker(accidents.consumer(fleet), telemetry=recorder))
    positions = list(range(1, accidents.number + 1))
    fleet.wait(lambda: fleet.seen("all") == positions or bool(fleet.attempts("all")))
    assert fleet.seen("all") == positions, fleet.checkpoint("all")
    fleet.stop()
    assert recorder.named("worker.event_failed") == recorder.named("worker.parked") == []
    retried = recorder.named("worker.batch_retried")
    assert {(data["consumer"], data["partition"]) for data in retried} == {("all", 0)}
    assert len(retried) >= max(1, len(accidents.accidents))
    assert all(data["retry_after"] > 0 for data in retried)


def in_every_shape(*shapes: Any, harms: Iterable[Callable[[Session], None]]) -> Accidents:
    """Make the accidents of a table, each in a batch of its own."""
    return Accidents(*(partial(shape, harm=harm) for shape in shapes for harm in harms), batch_size=1)


def test_a_lost_connection(drivers: Fleet):
    shapes = as_it_comes, wrapped, replaced, in_a_group, forgotten, swallowed, as_exit
    assert_nothing_is_counted(drivers, in_every_shape(*shapes, harms=[terminate, terminate_bare]))


def test_a_lost_race(drivers: Fleet):
    shapes = as_it_comes, wrapped, in_a_group, as_exit
    assert_nothing_is_counted(drivers, in_every_shape(*shapes, harms=[deadlock, conflict]))


def raising(sqlstate: str) -> Callable[[Session], None]:
    def harm(session: Session) -> None:
        session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{sqlstate}'; END $$"))

    return harm


def test_trouble_of_the_database(drivers: Fleet):
    """A full disk, no memory, a limit, an I/O error, a cancelled statement, a lock timeout, a pooler, a standby, …"""
    states = "53100", "53200", "53400", "58030", "57014", "57P03", "55P03", "26000", "25006", "XX001", "F0000", "08006"
    assert_nothing_is_counted(drivers, Accidents(*map(raising, states)))


def test_trouble_of_another_database_is_counted(sync_fleet: Fleet):
    """An engine that the handler has created is its own business, and its errors look the same."""
    fleet = sync_fleet
    other, nowhere = create_engine(fleet.engine.url), create_engine("postgresql+psycopg://127.0.0.1:1/nowhere")

    def elsewhere(engine: Engine) -> Callable[[PersistedEvent], None]:
        def fail(event: PersistedEvent) -> None:
            with Session(engine) as session:
                raising("53100")(session)

        return fail

    fleet.append()
    recorder = Recorder()
    engines = {"other": other, "nowhere": nowhere, "own": fleet.engine}
    consumers = [fleet.see(name, check=elsewhere(engine), max_attempts=1) for name, engine in engines.items()]
    fleet.start(fleet.worker(*consumers, telemetry=recorder))
    fleet.wait(lambda: len(recorder.named("worker.parked")) == 2 and len(recorder.named("worker.batch_retried")) > 6)
    assert {data["consumer"] for data in recorder.named("worker.parked")} == {"other", "nowhere"}
    assert {data["consumer"] for data in recorder.named("worker.batch_retried")} == {"own"}
    other.dispose()


def test_a_batch_that_is_undone_is_handled_again_from_its_first_event(both_fleets: Fleet):
    assert_nothing_is_counted(both_fleets, Accidents(terminate, deadlock))


def test_in_the_flush_and_with_the_commit(drivers: Fleet):
    """A sequence remembers that the accident has happened, even when the transaction is rolled back."""
    fleet = drivers
    accidents = {"connection": "PERFORM pg_terminate_backend(pg_backend_pid())"}
    accidents["conflict"] = "RAISE EXCEPTION 'as if' USING ERRCODE = '40001'"
    triggers = {"TRIGGER {}_{} AFTER INSERT": "", "CONSTRAINT TRIGGER {}_{} AFTER INSERT": "INITIALLY DEFERRED"}
    for number, ((trigger, deferred), (name, accident)) in enumerate(product(triggers.items(), accidents.items())):
        fleet.query(f"CREATE SEQUENCE accidents_{number}", commit=True)
        fleet.query(
            f"CREATE FUNCTION have_accident_{number}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('accidents_{number}') = 1 THEN {accident}; END IF; RETURN NULL; END $$",
            commit=True,
        )
        fleet.query(
            f"CREATE {trigger.format(name, number)} ON seen {deferred} FOR EACH ROW"
            f" WHEN (NEW.position = {number + 3}) EXECUTE FUNCTION have_accident_{number}()",
            commit=True,
        )
    assert_nothing_is_counted(fleet, Accidents(*[lambda session: None] * 4, batch_size=1))


def test_what_fails_elsewhere_is_counted_although_it_looks_like_an_outage(drivers: Fleet):
    """The connection is asked, and is well."""
    errors = ConnectionRefusedError, TimeoutError, FileNotFoundError, SystemExit, asyncio.CancelledError

    def failing(error: type[BaseException]) -> Any:
        def fail(event: PersistedEvent) -> None:
            if event.global_position == 3:
                raise error("somewhere else")

        return fleet.see(error.__name__, check=fail, max_attempts=2)

    fleet, recorder = drivers, Recorder()
    fleet.append(5)
    fleet.start(fleet.worker(*map(failing, errors), fleet.see("other"), telemetry=recorder))
    for error in errors:
        fleet.wait(lambda name=error.__name__: fleet.attempts(name) == 2)
        found = fleet.checkpoint(error.__name__)
        assert (found.last_position, found.failed_position, found.parked_at is None) == (2, 3, False)
        assert "somewhere else" in found.error
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5])
    assert recorder.named("worker.batch_retried") == []


def test_an_outage_is_logged_once_and_retried_soon(caplog: pytest.LogCaptureFixture):
    recorder = Recorder()

    async def execution(name: str, work: Any) -> Any:
        pytest.fail("nothing is recorded")

    failures = Failures(unbound_context(execution, hooks=Hooks(recorder)))
    away = OperationalError("SELECT", {}, Exception("away"))
    caplog.set_level(logging.INFO)
    delays = [asyncio.run(failures.interrupted(away)) for _ in range(20)]
    assert 0.25 < delays[0] <= 0.5
    assert 1.5 <= delays[-1] <= max(delays) <= 2.0
    assert [data["retry_after"] for data in recorder.named("worker.batch_retried")] == delays
    failures.batch_completed()
    failures.batch_completed()
    logged = [(record.message, record.levelno, record.partition) for record in caplog.records]
    assert logged == [
        ("batch was interrupted; will retry", logging.WARNING, 0),
        ("batches are running again", logging.INFO, 0),
    ]
    assert caplog.records[1].failures == 20
    assert asyncio.run(failures.interrupted(away)) <= 0.5
