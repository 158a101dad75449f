"""The worker with one node, for sessionmaker and async_sessionmaker alike."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, AsyncEventStore, EventStore, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.errors import (
    HandlerTransactionError,
    StablePositionError,
    TablesMissingError,
    TransactionRequiredError,
)
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.fix_store import make_async_engine, make_event, make_tables

INSERT = text("INSERT INTO seen (consumer, position) VALUES (:consumer, :position)")


class Fleet:
    """Makes workers of one kind, and runs them in threads."""

    def __init__(self, engine: Engine, *, is_async: bool) -> None:
        self.engine = engine
        self.is_async = is_async
        self.store = EventStore(make_tables(engine))
        WorkerTables(self.store.tables.metadata).metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE seen (number serial, consumer text, position bigint)"))
        self._running: list[tuple[Worker, threading.Thread]] = []

    def worker(self, *consumers: Any, **config: Any) -> Worker:
        settings = {
            "poll_interval": 0.01,
            "max_poll_interval": 0.05,
            "retry_delay": 0.01,
            "max_retry_delay": 0.05,
        } | config
        factory: Any = sessionmaker(self.engine)
        store: Any = self.store
        if self.is_async:
            self.async_engine = make_async_engine(self.engine)
            factory, store = async_sessionmaker(self.async_engine), AsyncEventStore(self.store.tables)
        return Worker(factory, store, consumers, config=WorkerConfig(**settings))

    def start(self, worker: Worker) -> threading.Thread:
        thread = threading.Thread(target=worker.run)
        thread.start()
        self._running.append((worker, thread))
        return thread

    async def dispose(self) -> None:
        """To be awaited in a loop of the test's own: connections cannot be closed outside it."""
        if self.is_async:
            await self.async_engine.dispose()

    def stop(self) -> None:
        for worker, thread in self._running:
            worker.stop()
            thread.join()

    def see(self, name: str, *, check: Callable[[PersistedEvent], None] = lambda event: None, **scope: Any) -> Any:
        """A consumer that writes down what it sees, in the kind of handler that fits the worker."""
        if self.is_async:

            @consumer(name, **scope)
            async def handle_async(session: AsyncSession, event: PersistedEvent) -> None:
                await session.execute(INSERT, {"consumer": name, "position": event.global_position})
                check(event)

            return handle_async

        @consumer(name, **scope)
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(INSERT, {"consumer": name, "position": event.global_position})
            check(event)

        return handle

    def append(self, number: int = 1, **event: Any) -> None:
        with Session(self.engine) as session:
            for count in range(number):
                self.store.append(session, AnyVersion(), [make_event(**{"aggregate_id": f"u{count % 5}"} | event)])
            session.commit()

    def query(self, sql: str, *, commit: bool = False, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            result = connection.execute(text(sql), parameters)
            rows = list(result.all()) if result.returns_rows else []
            if commit:
                connection.commit()
            return rows

    def seen(self, name: str) -> list[int]:
        return [
            row[0] for row in self.query("SELECT position FROM seen WHERE consumer = :name ORDER BY number", name=name)
        ]

    def checkpoint(self, name: str) -> Any:
        rows = self.query("SELECT * FROM consumer_checkpoints WHERE consumer_name = :name", name=name)
        return rows[0] if rows else None

    def attempts(self, name: str) -> int:
        found = self.checkpoint(name)
        return 0 if found is None else found.attempts

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)


@pytest.fixture(params=["sync", "async"])
def fleet(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Fleet]:
    fleet = Fleet(engine, is_async=request.param == "async")
    yield fleet
    fleet.stop()


class TestDrain:
    def test_it_processes_all_there_is_and_returns(self, fleet: Fleet):
        fleet.append(250)
        fleet.worker(fleet.see("all")).drain()
        assert fleet.seen("all") == list(range(1, 251))
        assert fleet.checkpoint("all").last_position == 250

    def test_again_it_goes_on_where_it_was(self, fleet: Fleet):
        worker = fleet.worker(fleet.see("all"))
        for _ in range(3):
            fleet.append(2)
            worker.drain()
        assert fleet.seen("all") == [1, 2, 3, 4, 5, 6]

    def test_an_empty_log(self, fleet: Fleet):
        fleet.worker(fleet.see("all")).drain()
        assert fleet.seen("all") == []

    def test_it_leaves_what_is_behind_an_append_in_flight(self, fleet: Fleet, engine: Engine):
        fleet.append(1)
        with Session(engine) as in_flight:
            fleet.store.append(in_flight, AnyVersion(), [make_event("u9")])
            fleet.append(1)
            fleet.worker(fleet.see("all")).drain()
            assert fleet.seen("all") == [1]
            in_flight.commit()
        fleet.worker(fleet.see("all")).drain()
        assert fleet.seen("all") == [1, 2, 3]

    def test_the_exception_of_a_handler_is_raised(self, fleet: Fleet):
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

    def test_two_failures_are_a_group(self, fleet: Fleet):
        def fail(event: PersistedEvent) -> None:
            raise ZeroDivisionError

        fleet.append(1)
        with pytest.raises(ExceptionGroup) as caught:
            fleet.worker(fleet.see("one", check=fail), fleet.see("two", check=fail)).drain()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError] * 2

    def test_in_a_running_loop(self, fleet: Fleet):
        fleet.append(3)
        worker = fleet.worker(fleet.see("all"))

        async def main() -> None:
            with pytest.raises(RuntimeError, match=r"await worker.serve\(drain=True\)"):
                worker.drain()
            await worker.serve(drain=True)
            await fleet.dispose()

        asyncio.run(main())
        assert fleet.seen("all") == [1, 2, 3]


class TestScope:
    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            ({}, [1, 2, 3, 4]),
            ({"aggregate_types": {"User"}}, [1, 3]),
            ({"aggregate_types": {"User", "Order"}}, [1, 2, 3, 4]),
            ({"event_types": ["B"]}, [3, 4]),
            ({"aggregate_types": {"Order"}, "event_types": {"B"}}, [4]),
            ({"aggregate_types": {"Nothing"}}, []),
            ({"aggregate_types": set()}, [1, 2, 3, 4]),
        ],
    )
    def test_only_what_is_wanted(self, fleet: Fleet, scope, expected):
        for event_type in ("A", "B"):
            for aggregate_type in ("User", "Order"):
                fleet.append(aggregate_type=aggregate_type, event_type=event_type)
        fleet.worker(fleet.see("scoped", **scope)).drain()
        assert fleet.seen("scoped") == expected
        assert fleet.checkpoint("scoped").last_position == 4

    def test_partitions_share_the_events(self, fleet: Fleet):
        fleet.append(60)
        fleet.worker(fleet.see("shared", partitions=3)).drain()
        assert sorted(fleet.seen("shared")) == list(range(1, 61))
        rows = fleet.query("SELECT partition, last_position FROM consumer_checkpoints ORDER BY partition")
        assert [tuple(row) for row in rows] == [(0, 60), (1, 60), (2, 60)]

    def test_a_batch_handler(self, fleet: Fleet, engine: Engine):
        sizes: list[int] = []

        class Batches:
            name = "batches"

            def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
                sizes.append(len(events))
                rows = [{"consumer": "batches", "position": event.global_position} for event in events]
                session.execute(INSERT, rows)

        fleet.append(25)
        fleet.worker(Batches(), batch_size=10).drain()
        assert sizes == [10, 10, 5]
        assert fleet.seen("batches") == list(range(1, 26))


class TestRun:
    def test_it_follows_until_it_is_stopped(self, fleet: Fleet):
        thread = fleet.start(fleet.worker(fleet.see("all")))
        for number in range(1, 4):
            fleet.append()
            fleet.wait(lambda number=number: fleet.seen("all") == list(range(1, number + 1)))
        fleet.stop()
        assert not thread.is_alive()

    def test_a_stop_before_the_start_counts_once(self, fleet: Fleet):
        worker = fleet.worker(fleet.see("all"))
        fleet.append()
        worker.stop()
        worker.run()
        assert fleet.seen("all") == []
        worker.drain()
        assert fleet.seen("all") == [1]

    def test_it_does_not_run_twice_at_a_time(self, fleet: Fleet):
        worker = fleet.worker(fleet.see("all"))
        fleet.append()
        fleet.start(worker)
        fleet.wait(lambda: fleet.seen("all") == [1])
        with pytest.raises(RuntimeError, match="running already"):
            worker.run()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_stop_it(self, fleet: Fleet, number: signal.Signals, request: pytest.FixtureRequest):
        before = signal.signal(number, lambda *_: None)
        request.addfinalizer(lambda: signal.signal(number, before))
        before = signal.getsignal(number)
        worker = fleet.worker(fleet.see("all", check=lambda event: os.kill(os.getpid(), number)))
        fleet.append()
        worker.run()  # returns, and the batch that was running is committed
        assert fleet.seen("all") == [1]
        assert signal.getsignal(number) == before

    def test_cancelling_serve_stops_it(self, fleet: Fleet):
        fleet.append()

        async def main() -> None:
            task = asyncio.create_task(fleet.worker(fleet.see("all")).serve())
            while not await asyncio.to_thread(fleet.seen, "all"):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await fleet.dispose()

        asyncio.run(main())

    def test_a_failing_event_is_tried_again_while_others_go_on(self, fleet: Fleet, caplog: pytest.LogCaptureFixture):
        is_healed = threading.Event()

        def fail(event: PersistedEvent) -> None:
            if event.global_position == 3 and not is_healed.is_set():
                raise ZeroDivisionError("three\0")

        fleet.append(5)
        fleet.start(fleet.worker(fleet.see("failing", check=fail), fleet.see("other")))
        fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5])
        fleet.wait(lambda: fleet.attempts("failing") >= 2)
        found = fleet.checkpoint("failing")
        assert (found.last_position, found.failed_position) == (2, 3)
        assert "ZeroDivisionError: three" in found.error
        assert found.retry_at >= found.failed_at
        assert fleet.seen("failing") == [1, 2]
        is_healed.set()
        fleet.wait(lambda: fleet.seen("failing") == [1, 2, 3, 4, 5])
        found = fleet.checkpoint("failing")
        assert (found.attempts, found.failed_position, found.error, found.retry_at) == (0, None, None, None)
        failures = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert {(record.consumer, record.global_position) for record in failures} == {("failing", 3)}

    def test_a_failing_batch_handler_is_narrowed_down_to_the_event(self, fleet: Fleet):
        class Batches:
            name = "batches"

            def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
                if any(event.global_position == 7 for event in events):
                    raise ZeroDivisionError
                session.execute(
                    INSERT, [{"consumer": "batches", "position": event.global_position} for event in events]
                )

        fleet.append(10)
        fleet.start(fleet.worker(Batches()))
        fleet.wait(lambda: fleet.attempts("batches") > 0)
        assert fleet.seen("batches") == [1, 2, 3, 4, 5, 6]
        assert fleet.checkpoint("batches").failed_position == 7

    def test_a_failure_of_the_first_event_of_a_new_consumer_is_recorded(self, fleet: Fleet):
        def fail(event: PersistedEvent) -> None:
            raise ZeroDivisionError

        fleet.append()
        fleet.start(fleet.worker(fleet.see("new", check=fail)))
        fleet.wait(lambda: fleet.attempts("new") >= 3)
        assert (fleet.checkpoint("new").last_position, fleet.checkpoint("new").failed_position) == (0, 1)

    def test_what_fails_with_the_commit_is_narrowed_down_as_well(self, fleet: Fleet):
        fleet.query("ALTER TABLE seen ADD UNIQUE (position) DEFERRABLE INITIALLY DEFERRED", commit=True)
        fleet.query("INSERT INTO seen (consumer, position) VALUES ('other', 4)", commit=True)
        fleet.append(6)
        fleet.start(fleet.worker(fleet.see("failing")))
        fleet.wait(lambda: fleet.attempts("failing") >= 1)
        assert fleet.seen("failing") == [1, 2, 3]
        assert fleet.checkpoint("failing").failed_position == 4

    def test_a_handler_that_exits_does_not_end_the_worker(self, fleet: Fleet):
        def leave(event: PersistedEvent) -> None:
            raise SystemExit(3)

        fleet.append()
        fleet.start(fleet.worker(fleet.see("leaving", check=leave), fleet.see("other")))
        fleet.wait(lambda: fleet.attempts("leaving") >= 1 and fleet.seen("other") == [1])
        assert "SystemExit: 3" in fleet.checkpoint("leaving").error

    def test_a_batch_that_does_not_end_is_rolled_back_after_the_shutdown_timeout(self, fleet: Fleet):
        is_in_batch, may_end = threading.Event(), threading.Event()

        def linger(event: PersistedEvent) -> None:
            is_in_batch.set()
            if not fleet.is_async:
                may_end.wait(10)
                return
            time.sleep(0.3)  # it holds the loop, as an asynchronous handler must not

        fleet.append(100)
        thread = fleet.start(fleet.worker(fleet.see("all", check=linger), shutdown_timeout=0.05))
        assert is_in_batch.wait(10)
        fleet.stop()
        assert not thread.is_alive()
        may_end.set()
        assert fleet.seen("all") == []

    def test_it_waits_for_a_database_that_comes_back(self, fleet: Fleet, engine: Engine):
        fleet.start(fleet.worker(fleet.see("all")))
        fleet.engine = create_engine(engine.url, poolclass=NullPool)  # for us; the worker's connections are cut
        fleet.append()
        fleet.wait(lambda: fleet.seen("all") == [1])
        for _ in range(5):
            terminated = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            fleet.query(f"{terminated} AND datname = current_database() AND backend_type = 'client backend'")
            fleet.append()
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5, 6])


class TestHandlersTransaction:
    """A handler that ends its transaction is told so, and nothing of its batch is applied."""

    @pytest.fixture
    def sync_fleet(self, engine: Engine) -> Fleet:
        return Fleet(engine, is_async=False)

    def drain(self, fleet: Fleet, misbehave: Callable[[Session], None]) -> None:
        @consumer("misbehaving")
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(INSERT, {"consumer": "misbehaving", "position": event.global_position})
            misbehave(session)

        fleet.append(2)
        with pytest.raises(HandlerTransactionError, match="'misbehaving'"):
            fleet.worker(handle).drain()
        assert fleet.seen("misbehaving") == []
        assert fleet.checkpoint("misbehaving").last_position == 0

    def test_a_commit_is_refused(self, sync_fleet: Fleet):
        self.drain(sync_fleet, lambda session: session.commit())

    def test_a_commit_whose_error_is_swallowed_is_refused(self, sync_fleet: Fleet):
        def misbehave(session: Session) -> None:
            with contextlib.suppress(HandlerTransactionError):
                session.commit()

        self.drain(sync_fleet, misbehave)

    def test_a_commit_inside_a_savepoint_is_refused(self, sync_fleet: Fleet):
        def misbehave(session: Session) -> None:
            session.begin_nested()
            session.commit()

        self.drain(sync_fleet, misbehave)

    def test_a_rollback_is_noticed(self, sync_fleet: Fleet):
        self.drain(sync_fleet, lambda session: session.rollback())

    def test_a_rollback_that_goes_on_is_noticed(self, sync_fleet: Fleet):
        def misbehave(session: Session) -> None:
            session.rollback()
            session.execute(INSERT, {"consumer": "misbehaving", "position": 0})

        self.drain(sync_fleet, misbehave)

    def test_a_commit_after_a_rollback_is_refused(self, sync_fleet: Fleet):
        def misbehave(session: Session) -> None:
            session.rollback()
            session.execute(INSERT, {"consumer": "misbehaving", "position": 0})
            session.commit()

        self.drain(sync_fleet, misbehave)

    def test_a_commit_by_sql_is_noticed(self, sync_fleet: Fleet):
        @consumer("sneaky")
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(text("COMMIT"))

        sync_fleet.append()
        with pytest.raises(HandlerTransactionError, match="perhaps by executing COMMIT"):
            sync_fleet.worker(handle).drain()

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_result_that_nobody_would_wait_for_is_refused(self, engine: Engine, is_async: bool):
        fleet = Fleet(engine, is_async=is_async)

        async def work() -> None: ...

        fleet.append()
        with pytest.raises(TypeError, match="declare it with async def"):
            fleet.worker(consumer("lost")(lambda session, event: work())).drain()
        assert fleet.checkpoint("lost").last_position == 0

    def test_an_asynchronous_commit_is_refused(self, engine: Engine):
        fleet = Fleet(engine, is_async=True)

        @consumer("misbehaving")
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            await session.commit()

        fleet.append()
        with pytest.raises(HandlerTransactionError):
            fleet.worker(handle).drain()
        assert fleet.checkpoint("misbehaving").last_position == 0

    def test_savepoints_are_welcome(self, sync_fleet: Fleet):
        @consumer("careful")
        def handle(session: Session, event: PersistedEvent) -> None:
            with session.begin_nested():
                session.execute(INSERT, {"consumer": "careful", "position": event.global_position})
            savepoint = session.begin_nested()
            session.execute(INSERT, {"consumer": "careful", "position": -1})
            savepoint.rollback()

        sync_fleet.append(2)
        sync_fleet.worker(handle).drain()
        assert sync_fleet.seen("careful") == [1, 2]


class TestArguments:
    def test_what_is_wrong_is_named(self, engine: Engine):
        store, factory = EventStore(), sessionmaker(engine)
        good = consumer("good")(lambda session, event: None)
        with pytest.raises(TypeError, match="session_factory must be a sessionmaker"):
            Worker(engine, store, [good])
        with pytest.raises(TypeError, match="store must be an EventStore"):
            Worker(factory, store.tables, [good])
        with pytest.raises(TypeError, match="is no consumer"):
            Worker(factory, store, [lambda session, event: None])
        with pytest.raises(ValueError, match="consumers must not be empty"):
            Worker(factory, store, [])
        with pytest.raises(ValueError, match="more than one is called 'good'"):
            Worker(factory, store, [good, good])
        with pytest.raises(TypeError, match="tables must be WorkerTables"):
            Worker(factory, store, [good], tables=store.tables)
        with pytest.raises(TypeError, match="config must be a WorkerConfig"):
            Worker(factory, store, [good], config={"batch_size": 3})

    def test_a_coroutine_handler_needs_an_async_sessionmaker(self, engine: Engine):
        @consumer("coroutine")
        async def handle(session, event) -> None: ...

        with pytest.raises(TypeError, match="'coroutine' is a coroutine function, which needs an async_sessionmaker"):
            Worker(sessionmaker(engine), EventStore(), [handle])

    def test_missing_tables(self, engine: Engine):
        good = consumer("good")(lambda session, event: None)
        with pytest.raises(TablesMissingError, match="events"):
            Worker(sessionmaker(engine), EventStore(), [good]).run()

    def test_missing_tables_of_the_worker(self, engine: Engine):
        good = consumer("good")(lambda session, event: None)
        store = EventStore(make_tables(engine))
        with pytest.raises(TablesMissingError, match="consumer_checkpoints"):
            Worker(sessionmaker(engine), store, [good]).run()

    @pytest.mark.parametrize("drain", [True, False])
    def test_a_connection_without_transactions(self, engine: Engine, drain: bool):
        fleet = Fleet(engine, is_async=False)
        fleet.append()
        factory = sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT"))
        worker = Worker(factory, fleet.store, [fleet.see("all")])
        with pytest.raises(TransactionRequiredError, match="AUTOCOMMIT"):
            worker.drain() if drain else worker.run()
        assert fleet.seen("all") == []

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"batch_size": 0}, ValueError, "batch_size must be greater than 0"),
            ({"batch_size": 2.5}, TypeError, "batch_size must be an int"),
            ({"poll_interval": "1"}, TypeError, "poll_interval must be a number of seconds"),
            ({"shutdown_timeout": float("nan")}, ValueError, "shutdown_timeout"),
            ({"poll_interval": 5}, ValueError, "poll_interval must not be greater than max_poll_interval"),
            ({"concurrency": True}, TypeError, "concurrency must be an int"),
        ],
    )
    def test_settings(self, settings, error, message):
        with pytest.raises(error, match=message):
            WorkerConfig(**settings)


def test_a_missing_privilege_is_an_error_and_no_guess(engine: Engine):
    """From PostgreSQL 17 on, a sequence that may not be read looks like one that was never used."""
    fleet = Fleet(engine, is_async=False)
    fleet.append()
    role = f"reader_{time.monotonic_ns()}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT SELECT ON events TO {role}"))
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA {schema} TO {role}"))
    try:
        with Session(engine) as session:
            session.execute(text(f"SET ROLE {role}"))
            with pytest.raises((StablePositionError, ProgrammingError), match="sequence") as caught:
                fleet.store.stable_position(session)
            assert "may not read" in str(caught.value) or "permission denied" in str(caught.value)
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))
