"""Measure the time from commit to handler: ``python -m tests.benchmarks.latency [NAME …] [--rounds N]``.

A worker with one consumer runs in a process of its own. This process appends one event at a time, with random pauses in
which the system is idle, and records the time when its commit returns. The handler records the time of its call, by the
same clock. The cases take turns within one run. ``bare psycopg`` is a loop of ``connection.notifies()`` and one SELECT
of the new events, in autocommit mode: without sessions, a checkpoint or exactly-once processing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import quantiles
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.benchmarks.program import describe, own_database, parse
from tests.fix_store import make_async_engine, make_event

_CHANNEL: Final = "latency"
_DEADLINE: Final = 30.0  # seconds; only a failure reaches it


@dataclass(frozen=True, slots=True)
class Case:
    """A case to measure.

    Attributes:
        follow: the function of the process. It reports the time of each event through the pipe, until the pipe closes.
        pause: shortest and longest idle time before an event, in seconds.
        driver: driver of an asynchronous engine; ``None`` for a synchronous one.
        dispatcher: the worker's setting.
    """

    follow: Callable[[str, Case, Connection], None]
    pause: tuple[float, float] = (0.05, 0.15)
    driver: str | None = None
    dispatcher: str = "notify"


def _run_worker(url: str, case: Case, pipe: Connection) -> None:
    engine: Any = create_engine(url)
    factory: Any = sessionmaker(engine)
    if case.driver is not None:
        engine = make_async_engine(engine, case.driver)
        factory = async_sessionmaker(engine)

    def handle(session: Session, event: PersistedEvent) -> None:
        pipe.send((event.global_position, time.monotonic()))

    async def handle_async(session: Any, event: PersistedEvent) -> None:
        handle(session, event)

    chosen = consumer("latency")(handle if case.driver is None else handle_async)
    store = EventStore(notify_channel=_CHANNEL)
    config = WorkerConfig(dispatcher=case.dispatcher)  # type: ignore[arg-type]
    worker = Worker(factory, store, [chosen], config=config)
    threading.Thread(target=_stop_at_the_end, args=(pipe, worker.stop), daemon=True).start()
    asyncio.run(worker.serve())


def _stop_at_the_end(pipe: Connection, stop: Callable[[], None]) -> None:
    try:
        pipe.recv()
    except EOFError:
        stop()


def _run_loop(url: str, case: Case, pipe: Connection) -> None:
    dsn = url.replace("postgresql+psycopg://", "postgresql://", 1)
    position = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        read = "SELECT * FROM events WHERE global_position > %s ORDER BY global_position"
        connection.execute(f"LISTEN {_CHANNEL}")
        while not pipe.poll():
            for row in connection.execute(read, [position]).fetchall():
                position = row[0]
                pipe.send((position, time.monotonic()))
            for _ in connection.notifies(timeout=0.5, stop_after=1):
                pass


CASES: Final = {
    "bare psycopg": Case(_run_loop),
    "notify, psycopg": Case(_run_worker),
    "notify, async psycopg": Case(_run_worker, driver="psycopg"),
    "notify, asyncpg": Case(_run_worker, driver="asyncpg"),
    "poll, psycopg": Case(_run_worker, dispatcher="poll", pause=(1.5, 2.0)),
    "poll, asyncpg": Case(_run_worker, dispatcher="poll", pause=(1.5, 2.0), driver="asyncpg"),
}
_WIDTH: Final = max(map(len, CASES))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.latency", description="From commit to handler.")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case (default: 3)")
    parser.add_argument("--events", type=int, default=50, help="events in a turn; by polling a fifth (default: 50)")
    options, chosen = parse(parser, CASES)
    if options.rounds < 1 or options.events < 10:
        parser.error("--rounds must be 1 or more, and --events 10 or more, for there to be quartiles")
    with ExitStack() as stack:
        url = stack.enter_context(own_database())
        engine = create_engine(url)
        stack.callback(engine.dispose)
        store = EventStore(notify_channel=_CHANNEL)
        WorkerTables(store.tables.metadata).metadata.create_all(engine)
        print(f"{describe(engine, 'psycopg', 'asyncpg')}\n")
        print(f"{'commit to handler, ms':{_WIDTH}}  {'median':>8}  {'quartiles':>19}  events", flush=True)
        latencies: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(options.rounds):
            for name in chosen:
                events = options.events if CASES[name].dispatcher == "notify" else max(2, options.events // 5)
                latencies[name] += _measure(url, engine, store, CASES[name], events)
        for name in chosen:
            low, middle, high = (1000 * each for each in quantiles(latencies[name], n=4))
            print(f"{name:{_WIDTH}}  {middle:8.2f}  {low:8.2f} – {high:8.2f}  {len(latencies[name]):6}", flush=True)


def _measure(url: str, engine: Engine, store: EventStore, case: Case, events: int) -> list[float]:
    with _following(url, case) as pipe:
        for _ in range(3):  # makes connections, prepares statements, starts notifications
            _append(engine, store, pipe)
        latencies = []
        for _ in range(events):
            time.sleep(random.uniform(*case.pause))
            latencies.append(_append(engine, store, pipe))
        return latencies


def _append(engine: Engine, store: EventStore, pipe: Connection) -> float:
    """Append one event, wait until it is handled, and return the time between the two."""
    with Session(engine) as session:
        (position,) = store.append(session, AnyVersion(), [make_event()]).global_positions
        session.commit()
        committed_at = time.monotonic()
    while pipe.poll(_DEADLINE):
        handled, handled_at = pipe.recv()
        if handled == position:  # and not what was there before
            return float(handled_at - committed_at)
    raise TimeoutError("the event did not reach the handler")


@contextmanager
def _following(url: str, case: Case) -> Iterator[Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=case.follow, args=(url, case, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the process
    try:
        yield ours
    finally:
        ours.close()
        process.join()


if __name__ == "__main__":
    main()
