"""Following the log: until it is stopped, and through outages."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.worker import WorkerConfig
from tests.fix_worker import INSERT, Fleet, Recorder
from tests.waiting import patiently


def test_it_follows_until_it_is_stopped(fleet: Fleet):
    thread = fleet.start(fleet.worker(fleet.see("all")))
    for number in range(1, 4):
        fleet.append()
        fleet.wait(lambda number=number: fleet.seen("all") == list(range(1, number + 1)))
    fleet.stop()
    assert not thread.is_alive()


def test_it_reports_when_it_is_ready(both_fleets: Fleet):
    """A worker is ready when its node has joined."""
    fleet, nodes = both_fleets, list[int]()
    worker = fleet.worker(fleet.see("all"))

    def note() -> None:
        nodes.append(len(fleet.query("SELECT FROM worker_nodes")))
        worker.stop()

    worker.run(on_ready=note)
    assert nodes == [1]


def test_a_stop_before_the_start_counts_once(fleet: Fleet):
    worker = fleet.worker(fleet.see("all"))
    fleet.append()
    worker.stop()
    worker.run()
    assert fleet.seen("all") == []
    worker.drain()
    assert fleet.seen("all") == [1]


def test_a_stop_reaches_the_worker_that_runs_in_its_place(fleet: Fleet):
    """``pupsourcing-sa worker`` runs a replacement that the application's own code does not know."""
    worker = fleet.worker(fleet.see("all"))
    thread = fleet.start(worker.replace(config=WorkerConfig(poll_interval=0.01)))
    fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1])
    worker.stop()
    thread.join(patiently(30))
    assert not thread.is_alive()
    before = fleet.worker(fleet.see("never"))
    before.stop()
    before.replace().run()  # returns at once


def test_sessions_without_autobegin(both_fleets: Fleet):
    """The worker begins its transactions by itself: of nodes, batches, failures and drains."""
    fleet, failures = both_fleets, iter([True, True])

    def fail_twice(event: PersistedEvent) -> None:
        assert not next(failures, False)

    fleet.append(2)
    consumes = fleet.see("all", check=fail_twice)
    for is_drain in (False, True):
        worker = fleet.worker(consumes)
        worker._session_factory.configure(autobegin=False)
        if is_drain:
            fleet.append()
            worker.drain()
            assert fleet.seen("all") == [1, 2, 3]
        else:
            fleet.start(worker)
            fleet.wait(lambda: fleet.seen("all") == [1, 2])
            fleet.stop()


def test_it_does_not_run_twice_at_a_time(fleet: Fleet):
    worker = fleet.worker(fleet.see("all"))
    fleet.append()
    fleet.start(worker)
    fleet.wait(lambda: fleet.seen("all") == [1])
    with pytest.raises(RuntimeError, match="running already"):
        worker.run()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it(fleet: Fleet, number: signal.Signals, request: pytest.FixtureRequest):
    before = signal.signal(number, lambda *_: None)
    request.addfinalizer(lambda: signal.signal(number, before))
    before = signal.getsignal(number)
    worker = fleet.worker(fleet.see("all", check=lambda event: os.kill(os.getpid(), number)))
    fleet.append()
    worker.run()  # returns, and the batch that was running is committed
    assert fleet.seen("all") == [1]
    assert signal.getsignal(number) == before


def test_cancelling_serve_stops_it(fleet: Fleet):
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


def test_a_batch_that_does_not_end_is_rolled_back_after_the_shutdown_timeout(both_fleets: Fleet):
    fleet = both_fleets
    is_in_batch, may_end = threading.Event(), threading.Event()

    @consumer("all")
    def linger(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "all", "position": event.global_position})
        is_in_batch.set()
        may_end.wait(patiently(10))

    @consumer("all")
    async def linger_async(session: AsyncSession, event: PersistedEvent) -> None:
        await session.execute(INSERT, {"consumer": "all", "position": event.global_position})
        is_in_batch.set()
        await asyncio.Event().wait()

    fleet.append(100)
    worker = fleet.worker(linger_async if fleet.is_async else linger, shutdown_timeout=0.05)
    thread = fleet.start(worker)
    assert is_in_batch.wait(patiently(10))
    worker.stop()
    thread.join(patiently(10))
    assert not thread.is_alive()
    may_end.set()
    fleet.stop()
    assert fleet.seen("all") == []


def test_a_thread_of_a_handler_that_hangs_does_not_keep_it(async_fleet: Fleet):
    """Closing an event loop waits for those of ``to_thread``."""
    is_in_batch, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        is_in_batch.set()
        may_end.wait(patiently(60))

    @consumer("all")
    async def linger(session: AsyncSession, event: PersistedEvent) -> None:
        await asyncio.to_thread(hang)

    async_fleet.append()
    worker = async_fleet.worker(linger, shutdown_timeout=0.05)
    thread = async_fleet.run(worker.run)
    try:
        assert is_in_batch.wait(patiently(10))
        worker.stop()
        thread.join(patiently(20))
        assert not thread.is_alive()
    finally:
        may_end.set()
        thread.join()


def test_a_stop_ends_a_batch_with_the_event_it_is_at(both_fleets: Fleet):
    fleet, recorder = both_fleets, Recorder()

    def has_been_told() -> bool:
        return recorder.named("worker.revoked") != []

    @consumer("all")
    def stop(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "all", "position": event.global_position})
        if event.global_position == 3:
            worker.stop()
            fleet.wait(has_been_told)

    @consumer("all")
    async def stop_async(session: AsyncSession, event: PersistedEvent) -> None:
        await session.execute(INSERT, {"consumer": "all", "position": event.global_position})
        if event.global_position == 3:
            worker.stop()
            while not has_been_told():
                await asyncio.sleep(0.001)

    fleet.append(10)
    worker = fleet.worker(stop_async if fleet.is_async else stop, telemetry=recorder)
    worker.run()
    assert fleet.seen("all") == [1, 2, 3]
    assert fleet.checkpoint("all").last_position == 3


def test_it_waits_for_a_database_that_comes_back(both_fleets: Fleet, engine: Engine):
    fleet = both_fleets
    fleet.start(fleet.worker(fleet.see("all")))
    fleet.engine = create_engine(engine.url, poolclass=NullPool)  # for us; the worker's connections are cut
    fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1])
    for _ in range(5):
        terminated = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        fleet.query(f"{terminated} AND datname = current_database() AND backend_type = 'client backend'")
        fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5, 6])


def test_the_checkpoint_of_an_idle_consumer_follows_an_idle_log(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """Otherwise its lag would grow forever."""
    monkeypatch.setattr("pupsourcing_sa.worker.processing.limits._IDLE_SECONDS", 0.2)
    fleet.append(5)
    fleet.start(fleet.worker(fleet.see("idle", event_types={"Nothing"})))
    fleet.wait(lambda: (found := fleet.checkpoint("idle")) is not None and found.last_position == 5)
    fleet.append(1)
    fleet.wait(lambda: fleet.checkpoint("idle").last_position == 6)


UNREAD = """
import os
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from pupsourcing_sa.worker.lifecycle import shutdown

@consumer("all")
def handle(session, event):
    os.kill(os.getpid(), 15)
    os.write(2, bytes(2**20))

shutdown.WATCHDOG_SECONDS = 0.5
config = WorkerConfig(shutdown_timeout=0.1)
Worker(sessionmaker(create_engine(sys.argv[1])), EventStore(), [handle], config=config).run()
"""


def test_a_process_ends_even_when_its_log_is_not_read(sync_fleet: Fleet):
    """A log collector may hang. Once the pipe is full, every thread that logs waits, even the one that gives up."""
    sync_fleet.append()
    url = sync_fleet.engine.url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-c", UNREAD, url], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(patiently(30)) == 1
        finally:
            process.kill()
    assert sync_fleet.checkpoint("all").last_position == 0
