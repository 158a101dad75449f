"""The dispatcher: looks at the log and publishes the stable position, for which every processor of the node waits.

It alone looks, whatever the number of consumers. After each look it knows the stable position and the head, the last
position in the log, and pauses for so long as that allows::

    polling    something is new             poll_interval, doubling up to max_poll_interval while nothing is
    behind     head > stable                the same: an append in flight will end, and a rollback notifies nobody
    settled    head = stable, and the       reconcile_interval
               listener can be relied upon

A notification, a listener found or lost, and the end of the worker cut the pause short. No wake-up is lost:

- A commit wakes nobody until LISTEN is in force; when it is, a look begins that sees everything committed before.
- The wake-up is put back *before* a look begins. A notification that arrives during it causes another look: the first
  may have begun before that commit. Notifications in between are one look, and there are at most 100 of those a second.
- A notification can come while an older append is in flight that holds the stable position back. Its own event is the
  head then, and the dispatcher is behind until stable has reached it.
- What no notification announced (from a store without a channel, over a connection that is dead and has not been told,
  through a pooler that cannot listen) is found after reconcile_interval. When the head has moved like this the listener
  is not relied upon any more, until there is a notification again.

Each look also tells which server and database it was, and the position is published with that. Another one that has
taken over, such as a standby that lacked the last commits, has other appends in flight: what was published before does
not count there, even if it was more, and no batch there begins with it.

A stable position below the head that does not move for stall_warning is reported with the transactions that hold it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.postgres.connections import connection_of, limit_transaction, require_transaction
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store.positions import BlockingAppend, LogPositions
from pupsourcing_sa.telemetry import NO_TELEMETRY, Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.dispatch.listener import Listener
from pupsourcing_sa.worker.dispatch.stall import StallWatch
from pupsourcing_sa.worker.execution.protocol import BindHandler, Execution
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all, wait_for_event, with_timeout
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["dispatch", "look", "pause_after"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: Between the beginnings of two looks, however many commits notify; an idle system's first look does not wait for it.
_LEAST_PAUSE: Final = 0.01


async def look(execution: Execution, store: EventStore) -> LogPositions:
    """The stable position of this moment, and which server's it is.

    Raises:
        TablesMissingError: the migrations have not been run.
        StablePositionError: the database cannot tell, for example because it is a standby.
        TransactionRequiredError: the sessions have no transactions.
    """
    return await execution("pupsourcing-dispatcher", lambda session, _: _look(session, store))


async def dispatch(
    execution: Execution,
    store: EventStore,
    stable: StablePosition,
    config: WorkerConfig,
    stopping: asyncio.Event,
    *,
    worker_id: UUID | str = "",
    hooks: Hooks = NO_TELEMETRY,
) -> None:
    """Look at the log until the worker stops.

    Args:
        execution: for looks and for the listener's connection; with two slots neither waits for the other.
        store: the log; with a ``notify_channel`` it is listened to, unless the settings say ``poll``.
        stable: where the stable position is published.
        config: the worker's settings.
        stopping: set when it is to end.
        worker_id: for logs and hooks.
        hooks: what is told of looks, stalls and the listener.
    """
    await _Dispatcher(execution, store, stable, config, stopping, str(worker_id), hooks).run()


def pause_after(pause: float, *, has_news: bool, is_settled: bool, config: WorkerConfig) -> float:
    """Seconds until the next look, if nothing wakes us up.

    Args:
        pause: the one before this look.
        has_news: the look found something, or was asked for.
        is_settled: there is nothing to wait for that will not be announced.
        config: the intervals.
    """
    if is_settled:
        return config.reconcile_interval
    if has_news or pause > config.max_poll_interval:
        return config.poll_interval
    return min(pause * 2, config.max_poll_interval)


class _Dispatcher:
    def __init__(
        self,
        execution: Execution,
        store: EventStore,
        stable: StablePosition,
        config: WorkerConfig,
        stopping: asyncio.Event,
        worker_id: str,
        hooks: Hooks,
    ) -> None:
        self._execution = execution
        self._store = store
        self._stable = stable
        self._config = config
        self._stopping = stopping
        self._hooks = hooks
        self._details = {"worker": worker_id}
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._stall = StallWatch(config.stall_warning, self._loop.time())
        self._pause = config.poll_interval
        self._failures = 0  # to look, in a row
        self._position = stable.value
        self._head: int | None = None
        self._origin = stable.origin
        self._listener: Listener | None = None
        if store.notify_channel is not None and config.dispatcher != "poll":
            self._listener = Listener(
                store.notify_channel,
                execution=execution,
                store=store,
                config=config,
                wake=self._woken.set,
                worker_id=worker_id,
                hooks=hooks,
            )

    async def run(self) -> None:
        stopped = asyncio.create_task(self._stopping.wait(), name="pupsourcing-stopped")
        stopped.add_done_callback(lambda _: self._woken.set())
        tasks: list[asyncio.Task[Any]] = [stopped]
        if self._listener is not None:
            tasks.append(asyncio.create_task(self._listener.run(), name="pupsourcing-listener"))
        try:
            while not self._stopping.is_set():
                began = self._loop.time()
                self._pause = await self._attempt()
                await wait_for_event(self._woken, self._pause)
                if (left := began + _LEAST_PAUSE - self._loop.time()) > 0:
                    await wait_for_event(self._stopping, left)
        finally:
            await cancel_all(tasks)

    async def _attempt(self) -> float:
        """Look, once; gives the pause after it."""
        is_asked_for = self._woken.is_set()
        self._woken.clear()
        try:
            # A connection may be dead and nobody says so.
            has_news = await with_timeout(self._config.heartbeat_timeout, self._look())
        except Exception:
            self._failures += 1
            if self._failures == 1:  # once for each outage
                _logger.warning("cannot read the stable position; will try again", exc_info=True, extra=self._details)
            return pause_after(self._pause, has_news=self._failures == 1, is_settled=False, config=self._config)
        if self._failures:
            _logger.info("can read the stable position again", extra=self._details | {"failures": self._failures})
            self._failures = 0
        return pause_after(
            self._pause, has_news=has_news or is_asked_for, is_settled=self._is_settled(), config=self._config
        )

    async def _look(self) -> bool:
        """Look and publish; whether there is anything new."""
        if self._listener is not None:
            self._listener.begin_look()
        with self._hooks.span("worker.look") as data:
            position, head, origin = await self._execution("pupsourcing-dispatcher", self._read)
            data["position"] = position
        if self._listener is not None:
            self._listener.judge(has_grown=self._head is not None and head > self._head)
        if origin != self._origin:
            self._begin_anew(origin)
        has_news = position > self._position or head != self._head
        self._position, self._head = max(position, self._position), head
        await self._watch(position, head)
        return has_news

    def _begin_anew(self, origin: str) -> None:
        """What is known of the log is another server's, which may have had more of it."""
        if self._origin is not None:
            _logger.info("the log is another server's now, or its server has been restarted", extra=self._details)
        self._origin, self._position, self._head = origin, 0, None
        self._stall = StallWatch(self._config.stall_warning, self._loop.time())

    def _read(self, session: Session, _: BindHandler) -> LogPositions:
        if self._failures:  # the log may be locked, as by a migration, and a thread that waits for it cannot be ended
            connection = connection_of(session, self._store.tables.events)
            limit_transaction(connection, self._config.heartbeat_timeout / 2, "lock_timeout")
        found = _look(session, self._store)
        # The processors need not wait for the end of this transaction.
        self._loop.call_soon_threadsafe(self._stable.publish, found.stable, found.server_identity)
        session.commit()  # psycopg forgets its prepared statements with a ROLLBACK
        return found

    def _is_settled(self) -> bool:
        is_announced = self._listener is not None and self._listener.is_reliable
        return is_announced and self._head is not None and self._position >= self._head

    # -- stalls ------------------------------------------------------------------------------------------------

    async def _watch(self, position: int, head: int) -> None:
        if self._stall.is_due(position, head, self._loop.time()):
            await self._report(position)
        elif self._stall.has_ended():
            _logger.info("stable position moves again", extra=self._details | {"position": position})

    async def _report(self, position: int) -> None:
        def work(session: Session, _: BindHandler) -> list[BlockingAppend]:
            return self._store.blocking_appends(session)

        appends = await self._execution("pupsourcing-dispatcher", work)
        holders = [each.to_dict() for each in appends if each.mark <= position]
        if not holders:  # it has ended in the meantime, as the next look will see
            return
        now = self._loop.time()
        details = {"position": position, "seconds": self._stall.seconds(now), "holders": holders}
        _logger.warning("stable position stands still", extra=self._details | details)
        self._hooks.event("worker.stalled", **details)
        self._stall.complained(now)


def _look(session: Session, store: EventStore) -> LogPositions:
    require_transaction(connection_of(session, store.tables.events))  # a batch without one would not be a batch
    return store.reader.positions(session)
