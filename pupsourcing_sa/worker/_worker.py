"""The worker itself: checks what it is given, starts the loops, stops them."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.store._errors import is_outage
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker._checkpoints import Checkpoint
from pupsourcing_sa.worker._config import WorkerConfig
from pupsourcing_sa.worker._dispatcher import dispatch, look
from pupsourcing_sa.worker._execution import (
    Execution,
    SessionFactory,
    execution_for,
    is_async_sessionmaker,
    is_coroutine_function,
)
from pupsourcing_sa.worker._processor import Processor
from pupsourcing_sa.worker._stable import StablePosition, is_set_within

__all__ = ["Worker"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Worker:
    """Runs consumers: calls their handlers with the events of the log, and commits what they write.

    Args:
        session_factory: the application's ``sessionmaker``, whose handlers are functions and run in threads, or its
            ``async_sessionmaker``, whose handlers may be coroutine functions and get an ``AsyncSession``.
        store: the log to follow.
        consumers: one or more, with different names.
        tables: where checkpoints are kept; by default tables with the default names in the schema of the log.
        config: settings; `WorkerConfig` has the defaults.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no consumer, or two have the same name.

    A handler's writes and the checkpoint are committed together, so that each event is applied exactly once, also when
    two workers run the same consumer.
    """

    def __init__(
        self,
        session_factory: SessionFactory,
        store: EventStore | AsyncEventStore,
        consumers: Iterable[object],
        *,
        tables: WorkerTables | None = None,
        config: WorkerConfig | None = None,
    ) -> None:
        is_async = is_async_sessionmaker(session_factory)
        if not is_async and not isinstance(session_factory, sessionmaker):
            raise TypeError(
                "session_factory must be a sessionmaker or an async_sessionmaker, "
                f"not {type(session_factory).__name__}; write sessionmaker(engine)"
            )
        if not isinstance(store, (EventStore, AsyncEventStore)):
            raise TypeError(f"store must be an EventStore, not {type(store).__name__}")
        if tables is not None and not isinstance(tables, WorkerTables):
            raise TypeError(f"tables must be WorkerTables, not {type(tables).__name__}")
        if config is not None and not isinstance(config, WorkerConfig):
            raise TypeError(f"config must be a WorkerConfig, not {type(config).__name__}")
        self.id: UUID = uuid4()
        self.config = config or WorkerConfig()
        self.store = store.sync_store if isinstance(store, AsyncEventStore) else store
        self.tables = tables or WorkerTables(schema=self.store.tables.events.schema)
        self._session_factory = session_factory
        self._subscriptions = _checked(consumers, is_async=is_async)
        # Guards the two below: stop() is called from anywhere, also from a signal handler that interrupts its holder.
        self._lock = threading.RLock()
        self._stop_requested = False
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def consumers(self) -> tuple[str, ...]:
        """The names of the consumers, sorted."""
        return tuple(subscription.name for subscription in self._subscriptions)

    def run(self) -> None:
        """Run until SIGINT, SIGTERM or `stop`. Blocks; in a running event loop use `serve`.

        Raises:
            TablesMissingError: the migrations have not been run.
            StablePositionError: the database cannot tell the stable position, for example because it is a standby.
        """
        _run_in_new_loop(self._main(drain=False, owns_loop=True), "serve()")

    def drain(self) -> None:
        """Process everything up to now, then return: for tests and backfills.

        Blocks; in a running event loop use ``serve(drain=True)``. "Now" is the stable position: events after an append
        that is still in flight are left for the next time.

        Raises:
            Exception: whatever a handler raised; what precedes the event that failed is committed. An
                ``ExceptionGroup`` when several consumers failed.
        """
        _run_in_new_loop(self._main(drain=True, owns_loop=True), "serve(drain=True)")

    async def serve(self, *, drain: bool = False) -> None:
        """The same as `run`, or as `drain`, inside a running event loop.

        Signals are left to whoever owns the loop; `stop` ends it, and so does cancelling it, which rolls back at once.
        """
        await self._main(drain=drain, owns_loop=False)

    def stop(self) -> None:
        """Ask the worker to stop: no new batches; the running ones may finish within ``shutdown_timeout``.

        Returns at once. May be called from any thread, from a signal handler, more than once, and before `run`, which
        then returns at once.
        """
        with self._lock:
            self._stop_requested = True
            if self._running is not None:
                loop, stopping = self._running
                loop.call_soon_threadsafe(stopping.set)

    async def _main(self, *, drain: bool, owns_loop: bool) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if self._running is not None:
                raise RuntimeError("the worker is running already")
            self._running = loop, stopping
            if self._stop_requested and not drain:
                stopping.set()
        try:
            # The dispatcher has a slot of its own: it looks at the log also while every other is in a long batch.
            execution = execution_for(self._session_factory, self.config.concurrency)
            lookout = execution_for(self._session_factory, 1)
            try:
                with self._handling_signals(loop, is_wanted=owns_loop and not drain):
                    await self._run(execution, lookout, stopping, drain=drain)
            finally:
                if owns_loop:
                    await execution.close()
        finally:
            with self._lock:
                self._running, self._stop_requested = None, False

    @contextmanager
    def _handling_signals(self, loop: asyncio.AbstractEventLoop, *, is_wanted: bool) -> Iterator[None]:
        if not is_wanted or threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def _run(self, execution: Execution, lookout: Execution, stopping: asyncio.Event, *, drain: bool) -> None:
        is_aborted = threading.Event()
        processors = [
            Processor(
                subscription,
                replace(subscription.scope, partition=partition),
                Checkpoint(self.tables, subscription.name, partition),
                execution=execution,
                store=self.store,
                config=self.config,
                stopping=stopping,
                is_aborted=is_aborted.is_set,
            )
            for subscription in self._subscriptions
            for partition in range(subscription.scope.partitions)
        ]
        position = await self._first_look(lookout, processors[0], stopping, is_patient=not drain)
        if position is None:
            return
        stable = StablePosition()
        stable.publish(position)
        _logger.info("worker started", extra={"worker": str(self.id), "consumers": self.consumers})
        if drain:
            loops = [asyncio.create_task(each.drain(position), name=each.name) for each in processors]
        else:
            loops = [asyncio.create_task(each.run(stable), name=each.name) for each in processors]
            watch = dispatch(lookout, self.store, stable, self.config, stopping)
            loops.append(asyncio.create_task(watch, name="pupsourcing-dispatcher"))
        shutdown = asyncio.create_task(
            self._shut_down(stopping, stable, is_aborted, loops), name="pupsourcing-shutdown"
        )
        try:
            outcomes = await asyncio.gather(*loops, return_exceptions=True)
        finally:
            is_aborted.set()
            for task in (shutdown, *loops):
                task.cancel()
            await asyncio.gather(shutdown, *loops, return_exceptions=True)
            _logger.info("worker stopped", extra={"worker": str(self.id)})
        _raise_failures([error for error in outcomes if isinstance(error, Exception)])

    async def _first_look(
        self, lookout: Execution, processor: Processor, stopping: asyncio.Event, *, is_patient: bool
    ) -> int | None:
        """The stable position; whatever an outage does not explain is a reason not to start."""
        stopped = asyncio.create_task(stopping.wait(), name="pupsourcing-stopped")
        try:
            while not stopping.is_set():
                looking = asyncio.create_task(self._look(lookout, processor), name="pupsourcing-first-look")
                await asyncio.wait({looking, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    looking.cancel()  # it may be waiting for a server that is not there
                    return None
                error = looking.exception()
                if error is None:
                    return looking.result()
                # asyncpg raises the operating system's own errors when it cannot connect.
                if not is_patient or not (is_outage(error) or isinstance(error, OSError)):
                    raise error
                _logger.warning("database is not available; will try again", exc_info=error)
                await is_set_within(stopping, self.config.retry_delay)
        finally:
            stopped.cancel()
        return None

    async def _look(self, lookout: Execution, processor: Processor) -> int:
        position = await look(lookout, self.store)
        await processor.look()  # are the worker's tables there as well?
        return position

    async def _shut_down(
        self,
        stopping: asyncio.Event,
        stable: StablePosition,
        is_aborted: threading.Event,
        loops: list[asyncio.Task[None]],
    ) -> None:
        """Once a stop is asked for: let the running batches finish, then roll them back, then leave them behind."""
        await stopping.wait()
        stable.close()
        _, running = await asyncio.wait(loops, timeout=self.config.shutdown_timeout)
        if running:
            names = sorted(task.get_name() for task in running)
            _logger.error("batches did not finish in time; rolling them back", extra={"processors": names})
            is_aborted.set()  # a thread sees it before its next event
            _, running = await asyncio.wait(running, timeout=1.0)
            for task in running:
                task.cancel()

    def __repr__(self) -> str:
        return f"<Worker {self.id} consumers={self.consumers!r}>"


def _run_in_new_loop(main: Coroutine[Any, Any, None], in_loop: str) -> None:
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError(f"this would block the running event loop; write `await worker.{in_loop}`")
    asyncio.run(main)


def _checked(consumers: Iterable[object], *, is_async: bool) -> tuple[Subscription, ...]:
    if isinstance(consumers, (str, bytes)) or not isinstance(consumers, Iterable):
        raise TypeError(f"consumers must be a list of consumers, not {type(consumers).__name__}; write [consumer]")
    subscriptions = sorted(map(Subscription.of, consumers), key=lambda each: each.name)
    if not subscriptions:
        raise ValueError("consumers must not be empty")
    names = [each.name for each in subscriptions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"consumers must have different names; more than one is called {', '.join(map(repr, twice))}")
    for each in subscriptions:
        if not is_async and is_coroutine_function(each.handle_batch or each.handle):
            raise TypeError(
                f"the handler of consumer {each.name!r} is a coroutine function, which needs an async_sessionmaker"
            )
    return tuple(subscriptions)


def _raise_failures(failures: list[Exception]) -> None:
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup("several consumers failed", failures)
