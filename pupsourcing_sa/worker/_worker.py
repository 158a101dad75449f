"""The public `Worker`: its arguments, its run, and its stop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload
from uuid import UUID, uuid4

from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa._checks import check_type
from pupsourcing_sa.consumer import AsyncConsumer, BatchConsumer, Consumer, Subscription, SyncConsumer
from pupsourcing_sa.consumer.handlers import is_coroutine_function
from pupsourcing_sa.errors import MissingExtraError
from pupsourcing_sa.postgres.redaction import redacted
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.store.server_checks import CheckResult
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks, Telemetry
from pupsourcing_sa.worker._drain import Drain
from pupsourcing_sa.worker._node import Node
from pupsourcing_sa.worker._run import Executions, Run
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.execution.engines import check_engines
from pupsourcing_sa.worker.execution.factory import execution_for, is_async_sessionmaker
from pupsourcing_sa.worker.execution.protocol import SessionFactory
from pupsourcing_sa.worker.execution.threads import UnawaitedExecutor
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.signals import handling_signals
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

__all__ = ["Worker"]

_T = TypeVar("_T")
_Session = TypeVar("_Session", bound=Session)
_AsyncSession = TypeVar("_AsyncSession", bound="AsyncSession")

#: In addition to the connections of batches: for the dispatcher, its listener while it connects, and the node.
_EXTRA_CONNECTIONS: Final = 3


class Worker:
    """Runner of consumers: it calls their handlers with the events of the log, and commits their changes.

    A handler's writes and the checkpoint are committed together. Each event is therefore applied exactly once, even
    when two workers run the same consumer.

    Args:
        session_factory: the application's ``sessionmaker`` or ``async_sessionmaker``. With a ``sessionmaker``, handlers
            are functions and run in threads. With an ``async_sessionmaker``, they may be coroutine functions, which get
            an ``AsyncSession``. The worker begins all transactions by itself, even with ``autobegin=False``.
        store: the log to follow.
        consumers: one or more consumers with different names.
        tables: the tables of checkpoints and nodes; by default those with the default names in the schema of the log.
        config: the settings; `WorkerConfig` has the defaults.
        telemetry: hooks around everything that the worker does; see `pupsourcing_sa.telemetry`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no consumer, two consumers have the same name, or one has a registry of event classes that
            is not the store's.
        MissingExtraError: greenlet is not installed, which an ``async_sessionmaker`` needs.
    """

    @overload
    def __init__(
        self,
        session_factory: sessionmaker[_Session],
        store: EventStore | AsyncEventStore,
        consumers: Iterable[SyncConsumer[_Session]],
        *,
        tables: WorkerTables | None = None,
        config: WorkerConfig | None = None,
        telemetry: Telemetry | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        session_factory: async_sessionmaker[_AsyncSession],
        store: EventStore | AsyncEventStore,
        consumers: Iterable[AsyncConsumer[_AsyncSession] | SyncConsumer[Session]],
        *,
        tables: WorkerTables | None = None,
        config: WorkerConfig | None = None,
        telemetry: Telemetry | None = None,
    ) -> None: ...

    def __init__(
        self,
        session_factory: SessionFactory,
        store: EventStore | AsyncEventStore,
        consumers: Iterable[Any],
        *,
        tables: WorkerTables | None = None,
        config: WorkerConfig | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        is_async = is_async_sessionmaker(session_factory)
        if is_async:
            try:
                import greenlet  # noqa: F401 - SQLAlchemy 2.0 reports that it is missing only when it is used
            except ImportError as error:
                raise MissingExtraError("greenlet", "asyncio") from error
        else:
            expected = "a sessionmaker or an async_sessionmaker"
            check_type("session_factory", session_factory, sessionmaker, expected, "; write sessionmaker(engine)")
        check_type("store", store, (EventStore, AsyncEventStore), "an EventStore")
        check_type("tables", tables, (WorkerTables, NoneType), "WorkerTables")
        check_type("config", config, (WorkerConfig, NoneType), "a WorkerConfig")
        if telemetry is not None and not all(callable(getattr(telemetry, name, None)) for name in ("span", "event")):
            raise TypeError(
                f"telemetry must have the methods span(name, data) and event(name, data), which {telemetry!r} lacks"
            )
        self.id: UUID = uuid4()
        self._pid = os.getpid()
        self.config = config or WorkerConfig()
        self.store = store.sync_store if isinstance(store, AsyncEventStore) else store
        if self.config.dispatcher == "notify" and self.store.notify_channel is None:
            raise ValueError("dispatcher='notify' needs notifications; write EventStore(notify_channel=\"…\")")
        self.tables = tables or WorkerTables(schema=self.store.tables.events.schema)
        self._session_factory = session_factory
        self._consumers = tuple(_require_iterable(consumers))
        self._refuse_other_registries()
        self._subscriptions = _subscriptions_of(self._consumers, is_async=is_async)
        self._telemetry = telemetry
        self._checked_servers: set[str] = set()
        self._statements = CheckpointStatements(self.tables, self.store.tables.events)
        # Guards the next three. It is reentrant because a signal handler may call stop() while its thread has the lock.
        self._lock = threading.RLock()
        self._stop_requested = False
        self._running: tuple[asyncio.AbstractEventLoop, Service] | None = None
        self._successors: list[Worker] = []

    def _refuse_other_registries(self) -> None:
        for consumer in self._consumers:
            registry = getattr(consumer, "registry", None)
            if isinstance(registry, EventRegistry) and registry is not self.store.registry:
                problem = "has none" if self.store.registry is None else "has another one"
                raise ValueError(
                    f"consumer {consumer.name!r} has a registry of event classes, but the store {problem}; create the "
                    "store with registry= of the consumer"
                )

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of the consumers, sorted."""
        return tuple(subscription.name for subscription in self._subscriptions)

    def consumer_named(self, name: str) -> Consumer | BatchConsumer:
        """Return the consumer of this name.

        Raises:
            KeyError: the worker has no such consumer.
        """
        return {consumer.name: consumer for consumer in self._consumers}[name]

    def replace(
        self, *, more_consumers: Iterable[Consumer | BatchConsumer] = (), config: WorkerConfig | None = None
    ) -> Worker:
        """Return a copy with more consumers or other settings. Stopping this worker also stops the copy.

        ``pupsourcing-sa worker`` runs such a copy if the deployment has settings or consumers of its own.

        Raises:
            TypeError: as for a new worker.
            ValueError: as for a new worker.
        """
        successor = Worker(
            self._session_factory,
            self.store,
            [*self._consumers, *_require_iterable(more_consumers)],
            tables=self.tables,
            config=config or self.config,
            telemetry=self._telemetry,
        )
        with self._lock:
            self._successors.append(successor)
            if self._stop_requested:
                successor.stop()
        return successor

    def run(self, *, on_ready: Callable[[], None] | None = None) -> None:
        """Run until SIGINT, SIGTERM or `stop`. This blocks; in a running event loop use `serve`.

        ``pupsourcing_sa/worker/lifecycle/shutdown.py`` has the timeline of a shutdown.

        Args:
            on_ready: called once, on the event loop, when the node has joined and begins to process its partitions. For
                example, it may notify a service manager. It must not block.

        Raises:
            TablesMissingError: the migrations have not been run.
            PartitionsError: a consumer's number of partitions differs from that in the database.
            StablePositionError: the database cannot report the stable position, for example because it is a standby.
            UnsupportedServerError: the server does not do what the stable position relies on; see `EventStore.check`.
            TypeError: all sessions share one connection, because of a ``StaticPool`` or a bind to a ``Connection``.
        """
        # Handle signals around the event loop, from its first moment to its last.
        with handling_signals(self.stop, self.config.shutdown_timeout):
            _run_in_new_loop(self._main(drain=False, owns_loop=True, on_ready=on_ready), "worker.serve()")

    def drain(self) -> None:
        """Process everything up to the current stable position, then return. For tests and backfills.

        This blocks; in a running event loop use ``serve(drain=True)``. Events after an append in flight are not
        processed.

        Raises:
            Exception: the exception of a handler, or an ``ExceptionGroup`` if several consumers failed. The events
                before the failing one are committed.
        """
        _run_in_new_loop(self._main(drain=True, owns_loop=True), "worker.serve(drain=True)")

    async def serve(self, *, drain: bool = False) -> None:
        """Do the same as `run` or `drain` inside a running event loop.

        It handles no signals: the owner of the event loop calls `stop`. Cancelling it skips ``shutdown_timeout``:
        running batches are rolled back.
        """
        await self._main(drain=drain, owns_loop=False)

    def check(self) -> list[CheckResult]:
        """Run the self-check of the server and return the result of each step. ``pupsourcing-sa doctor`` prints them.

        `run` and `drain` do the same when they start, and raise the first problem. This blocks; in a running event loop
        use `AsyncEventStore.check`.

        Raises:
            DBAPIError: the database cannot be reached.
            TypeError: as for `run`.
        """
        return _run_in_new_loop(self._check(), "store.check(engine)")

    def stop(self) -> None:
        """Ask the worker to stop. It begins no batch, and running ones may finish within ``shutdown_timeout``.

        This returns at once. It may be called from any thread or signal handler, any number of times, and before `run`,
        which then returns at once.
        """
        with self._lock:
            self._stop_requested = True
            if self._running is not None:
                loop, service = self._running
                loop.call_soon_threadsafe(service.stop)
            for successor in self._successors:
                successor.stop()

    async def _main(self, *, drain: bool, owns_loop: bool, on_ready: Callable[[], None] | None = None) -> None:
        # If the worker was created before a fork, each process is a separate node.
        if self._pid != os.getpid():
            self.id, self._pid = uuid4(), os.getpid()
        run = self._new_run(on_ready)
        service = Drain(run) if drain else Node(run)
        with self._lock:
            if self._running is not None:
                raise RuntimeError("the worker is running already; create another Worker")
            self._running = asyncio.get_running_loop(), service
            if self._stop_requested and not drain:
                service.stop()
        try:
            partitions = sum(subscription.scope.partitions for subscription in self._subscriptions)
            batches = min(self.config.concurrency, partitions)
            check_engines(
                self._session_factory,
                self.store.tables.events,
                self.tables.consumer_checkpoints,
                wanted=0 if drain else batches + _EXTRA_CONNECTIONS,
            )
            if owns_loop:
                asyncio.get_running_loop().set_default_executor(UnawaitedExecutor())
            try:
                await service.start()
            finally:
                if owns_loop:
                    await run.executions.batches.close()
        finally:
            with self._lock:
                self._running, self._stop_requested = None, False

    async def _check(self) -> list[CheckResult]:
        check_engines(self._session_factory, self.store.tables.events, self.tables.consumer_checkpoints)
        run = self._new_run(None)
        try:
            return await run.executions.log("pupsourcing-check", lambda session, _: run.checks(session))
        finally:
            await run.executions.log.close()

    def _new_run(self, on_ready: Callable[[], None] | None) -> Run:
        factory, config = self._session_factory, self.config
        return Run(
            worker_id=self.id,
            store=self.store,
            tables=self.tables,
            subscriptions={subscription.name: subscription for subscription in self._subscriptions},
            config=config,
            hooks=Hooks(
                self._telemetry,
                report=partial(redacted, hide_parameters=config.hide_parameters),
                worker=str(self.id),
            ),
            executions=Executions(
                batches=execution_for(factory, config.concurrency),
                log=execution_for(factory, 2),
                coordination=execution_for(factory, 1),
            ),
            checked_servers=self._checked_servers,
            statements=self._statements,
            on_ready=on_ready,
        )

    def __repr__(self) -> str:
        return f"<Worker {self.id} consumers={self.consumers!r}>"


def _run_in_new_loop(main: Coroutine[Any, Any, _T], in_loop: str) -> _T:
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError(f"this call would block the running event loop; write `await {in_loop}`")
    return asyncio.run(main)


def _require_iterable(consumers: Iterable[Consumer | BatchConsumer]) -> Iterable[Consumer | BatchConsumer]:
    if isinstance(consumers, (str, bytes)) or not isinstance(consumers, Iterable):
        raise TypeError(f"consumers must be a list of consumers, not {type(consumers).__name__}; write [consumer]")
    return consumers


def _subscriptions_of(consumers: Iterable[object], *, is_async: bool) -> tuple[Subscription, ...]:
    subscriptions = sorted(map(Subscription.of, consumers), key=lambda subscription: subscription.name)
    if not subscriptions:
        raise ValueError("consumers must not be empty; pass at least one consumer")
    names = [subscription.name for subscription in subscriptions]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        repeated = ", ".join(map(repr, duplicates))
        raise ValueError(f"consumers must have different names; more than one is called {repeated}")
    for subscription in subscriptions:
        if not is_async and is_coroutine_function(subscription.handle_batch or subscription.handle):
            raise TypeError(
                f"the handler of consumer {subscription.name!r} is a coroutine function, which needs an "
                "async_sessionmaker; pass one as session_factory, or declare the handler with def"
            )
    return tuple(subscriptions)
