"""The dispatcher: reads the stable position of the log and publishes it to the processors of the node.

A node has one dispatcher, whatever the number of its consumers. Each poll reads the stable position and the last
position in the log. The interval until the next poll depends on them::

    polling    something is new                 poll_interval; it doubles up to max_poll_interval while nothing is new
    behind     last > stable                    the same: an append in flight will end, if only with a ROLLBACK,
                                                which sends no notification
    settled    last = stable, and the listener  reconcile_interval
               is reliable

A notification, a listener that connects or loses its connection, and `stop` end the interval early. No wake-up is lost:

- The first poll after LISTEN takes effect sees everything that was committed before.
- A wake-up is cleared *before* a poll begins. A notification that arrives during the poll causes another one, because
  the first may have begun before that commit. All notifications of one interval cause one poll, and there are at most
  100 polls per second.
- A notification can arrive while an older append in flight holds back the stable position. The event that caused it is
  then above the stable position, so the dispatcher is behind until the stable position reaches the event.
- Some events arrive without a notification: from a store without a channel, over a connection that is dead without an
  error, or through a pooler that cannot LISTEN. The dispatcher finds them after reconcile_interval. It then does not
  rely on the listener until the next notification.

Each poll also reads the server's identity, which is published with the position. A server that takes over, such as a
promoted standby that lacks the last commits, has other appends in flight. A position of the former server is not valid
there, even if it is higher, so no batch on the new server begins with it.

If the stable position stays below the last position for stall_warning, the dispatcher reports the transactions that
hold it back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.postgres.connections import connection_of, limit_transaction, require_transaction
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store.positions import BlockingAppend, LogPositions
from pupsourcing_sa.telemetry import NO_TELEMETRY, Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.dispatch.listener import Listener
from pupsourcing_sa.worker.dispatch.stall import StallMonitor
from pupsourcing_sa.worker.execution.protocol import BindHandler, Execution
from pupsourcing_sa.worker.lifecycle.outage import Outage
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all, wait_for_event, with_timeout
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["Dispatcher", "interval_after", "read_positions"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: Minimum time between the beginnings of two polls, however many commits notify. The first poll of an idle system does
#: not wait for it.
_MIN_INTERVAL: Final = 0.01


async def read_positions(execution: Execution, store: EventStore) -> LogPositions:
    """Return the current positions of the log.

    Raises:
        TablesMissingError: the migrations have not been run.
        StablePositionError: the database cannot report the stable position, for example because it is a standby.
        TransactionRequiredError: the sessions are in autocommit mode.
    """
    return await execution("pupsourcing-dispatcher", lambda session, _: _read_positions(session, store))


def interval_after(interval: float, *, has_news: bool, is_settled: bool, config: WorkerConfig) -> float:
    """Return the seconds until the next poll if nothing ends the interval early.

    Args:
        interval: the interval before this poll.
        has_news: the poll found something, or a wake-up caused it.
        is_settled: a notification will announce every new event.
        config: the worker's settings.
    """
    if is_settled:
        return config.reconcile_interval
    if has_news or interval > config.max_poll_interval:
        return config.poll_interval
    return min(interval * 2, config.max_poll_interval)


class Dispatcher(Service):
    """Publisher of the stable position; see the module.

    Args:
        execution: runs the polls and opens the listener's connection. With two slots, neither waits for the other.
        store: the log. If it has a ``notify_channel``, the dispatcher listens on it, unless the settings say ``poll``.
        stable: receives the stable position.
        config: the worker's settings.
        worker_id: the node, for logs and hooks.
        hooks: receive polls, stalls, and the listener's connections.
    """

    def __init__(
        self,
        execution: Execution,
        store: EventStore,
        stable: StablePosition,
        config: WorkerConfig,
        *,
        worker_id: UUID | str = "",
        hooks: Hooks = NO_TELEMETRY,
    ) -> None:
        super().__init__("pupsourcing-dispatcher")
        self._execution = execution
        self._store = store
        self._stable = stable
        self._config = config
        self._hooks = hooks
        self._details = {"worker": str(worker_id)}
        self._woken = asyncio.Event()
        self._stall = StallMonitor(config.stall_warning, time.monotonic())
        self._outage = Outage(
            "cannot read the stable position; will retry",
            "stable position is readable again",
            details=self._details,
            first_delay=config.poll_interval,
            max_delay=config.max_poll_interval,
            hide_parameters=config.hide_parameters,
        )
        self._interval = config.poll_interval
        self._position = stable.value
        self._last: int | None = None
        self._server_identity = stable.server_identity
        self._listener: Listener | None = None
        if store.notify_channel is not None and config.dispatcher != "poll":
            self._listener = Listener(
                store.notify_channel,
                execution=execution,
                store=store,
                config=config,
                wake=self._woken.set,
                worker_id=str(worker_id),
                hooks=hooks,
            )

    def stop(self) -> None:
        super().stop()
        self._woken.set()

    async def _run(self) -> None:
        listener = set() if self._listener is None else {self._listener.start()}
        try:
            while not self.stopping.is_set():
                began = time.monotonic()
                self._interval = await self._poll()
                await wait_for_event(self._woken, self._interval)
                if (left := began + _MIN_INTERVAL - time.monotonic()) > 0:
                    await wait_for_event(self.stopping, left)
        finally:
            await cancel_all(listener)

    async def _poll(self) -> float:
        """Poll once, and return the interval until the next poll."""
        was_woken = self._woken.is_set()
        self._woken.clear()
        try:
            # A connection may be dead without an error; the timeout finds that.
            has_news = await with_timeout(self._config.heartbeat_timeout, self._read(), self.stopping)
        except Exception as error:
            return self._config.poll_interval if self.stopping.is_set() else self._outage.failed(error)
        self._outage.over()
        return interval_after(
            self._interval, has_news=has_news or was_woken, is_settled=self._is_settled(), config=self._config
        )

    async def _read(self) -> bool:
        """Read and publish the positions. Return True if anything is new."""
        if self._listener is not None:
            self._listener.begin_poll()
        loop = asyncio.get_running_loop()

        def read(session: Session, _: BindHandler) -> LogPositions:
            if self._outage.failures:
                # The log may be locked, for example by a migration. A thread that waits for the lock cannot be ended,
                # and without a timeout each poll would add another one.
                connection = connection_of(session, self._store.tables.events)
                limit_transaction(connection, self._config.heartbeat_timeout / 2, "lock_timeout")
            found = _read_positions(session, self._store)
            # Publish now, so that the processors do not wait for the end of this transaction.
            loop.call_soon_threadsafe(self._stable.publish, found.stable, found.server_identity)
            # Commit, because psycopg forgets its prepared statements after a ROLLBACK.
            session.commit()
            return found

        with self._hooks.span("worker.look") as data:
            positions = await self._execution("pupsourcing-dispatcher", read)
            data["position"] = positions.stable
        if self._listener is not None:
            self._listener.finish_poll(has_grown=self._last is not None and positions.last > self._last)
        if positions.server_identity != self._server_identity:
            self._start_over(positions.server_identity)
        has_news = positions.stable > self._position or positions.last != self._last
        self._position, self._last = max(positions.stable, self._position), positions.last
        await self._watch_stall(positions)
        return has_news

    def _start_over(self, server_identity: str) -> None:
        """Forget the positions of the former server, which may have had more events."""
        if self._server_identity is not None:
            _logger.info("database server was restarted or replaced", extra=self._details)
        self._server_identity, self._position, self._last = server_identity, 0, None
        self._stall = StallMonitor(self._config.stall_warning, time.monotonic())

    def _is_settled(self) -> bool:
        is_notified = self._listener is not None and self._listener.is_reliable
        return is_notified and self._last is not None and self._position >= self._last

    # -- stalls ------------------------------------------------------------------------------------------------

    async def _watch_stall(self, positions: LogPositions) -> None:
        if self._stall.is_due(positions.stable, positions.last, time.monotonic()):
            await self._report_stall(positions.stable)
        elif self._stall.has_ended():
            _logger.info("stable position advances again", extra=self._details | {"position": positions.stable})

    async def _report_stall(self, position: int) -> None:
        def read(session: Session, _: BindHandler) -> list[BlockingAppend]:
            return self._store.reader.blocking_appends(session)

        appends = await self._execution("pupsourcing-dispatcher", read)
        holders = [append.to_dict() for append in appends if append.mark <= position]
        if not holders:  # the transaction has just ended, which the next poll notices
            return
        now = time.monotonic()
        details = {"position": position, "seconds": self._stall.seconds(now), "holders": holders}
        _logger.warning("stable position is stalled", extra=self._details | details)
        self._hooks.event("worker.stalled", **details)
        self._stall.reported(now)


def _read_positions(session: Session, store: EventStore) -> LogPositions:
    # Without a transaction, a batch would not be atomic. Refuse that before the first batch.
    require_transaction(connection_of(session, store.tables.events))
    return store.reader.positions(session)
