"""The listener: hears that something was committed, on a connection of its own, and says so.

::

                  ┌────────── connection and LISTEN made ─────────┐
                  │                                               v
    start ──> connecting                                      listening ──> a notification: wake up
                  ^                                               │
                  │  after a delay that grows with each failure   │
                  └──── waiting <─────── connection lost ─────────┘
                           ^  │
                           └──┘ connecting failed

Each arrow that ends in *listening* or *waiting* wakes the dispatcher up as well: it looks at the log once LISTEN is in
force, for what was committed before; and it polls for as long as nobody listens.

A notification says nothing but "look". PostgreSQL delivers it after the commit has become visible. One that is never
delivered, because the network is gone without a word or a pooler has lent the connection to somebody else, is missed by
the dispatcher and not here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable

from sqlalchemy.orm import Session

from pupsourcing_sa.store import EventStore
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.dispatch.notifications import Notifications, UnsupportedDriverError, open_notifications
from pupsourcing_sa.worker.execution.protocol import BindHandler, Execution

__all__ = ["Listener"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Listener:
    """Listens on one channel, for ever.

    Args:
        channel: name of the channel.
        execution: opens connections: in a thread, or in a greenlet.
        store: the log; its table decides which of a session's engines is the right one.
        config: the worker's settings.
        wake: called in the event loop at each notification, and when it begins and ceases to listen.
        worker_id: for logs and hooks.
        hooks: what is told of connections made and lost.

    Everything but the opening of connections happens in the event loop.
    """

    def __init__(
        self,
        channel: str,
        *,
        execution: Execution,
        store: EventStore,
        config: WorkerConfig,
        wake: Callable[[], None],
        worker_id: str,
        hooks: Hooks,
    ) -> None:
        self._channel = channel
        self._execution = execution
        self._store = store
        self._config = config
        self._wake = wake
        self._hooks = hooks
        self._details = {"worker": worker_id, "channel": channel}
        self._failures = 0
        self._is_listening = False
        self._heard = 0  # how often the dispatcher was woken up: by notifications, and to begin with
        self._heard_at_begin = 0  # of the present look
        self._heard_before = 0  # at the beginning of the last one that succeeded
        self._surprises = 0
        self._has_warned = False

    @property
    def is_reliable(self) -> bool:
        """Whether a commit will be heard, as far as can be told."""
        return self._is_listening and not self._surprises

    def begin_look(self) -> None:
        """A look begins."""
        self._heard_at_begin = self._heard

    def judge(self, *, has_grown: bool) -> None:
        """The look has succeeded; count the surprises in a row.

        A surprise is a log that has grown and nobody had said so, neither since this look began nor between the
        beginnings of the last one and this one.
        """
        before, self._heard_before = self._heard_before, self._heard_at_begin
        if self._heard != before or not self._is_listening:
            self._surprises = 0
        elif has_grown:
            self._surprises += 1
            # One may have been a notification on its way. Once for each connection: some stores may have no channel.
            if self._surprises == 2 and not self._has_warned:
                self._has_warned = True
                _logger.warning("events arrive without notifications; polling until there are any", extra=self._details)

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                error = await self._listen()
            except UnsupportedDriverError as unsupported:
                _logger.warning(
                    "no notifications with this driver; only polling",
                    extra=self._details | {"driver": unsupported.driver},
                )
                return
            except Exception as failure:
                error = failure
            await asyncio.sleep(self._lost(error))

    async def _listen(self) -> Exception:
        """Connect and listen until the connection is lost; gives the reason."""
        notifications = await self._open()
        try:
            losses: asyncio.Queue[Exception] = asyncio.Queue()
            notifications.start(self._hear, losses.put_nowait)
            self._established()
            return await losses.get()
        finally:
            self._is_listening = False
            notifications.close()

    async def _open(self) -> Notifications:
        opened = _Handover()

        def work(session: Session, _: BindHandler) -> None:
            bind = session.get_bind(clause=self._store.tables.events)  # as the store does, but without a transaction
            opened.put(open_notifications(bind.engine, self._channel))

        try:
            await self._execution("pupsourcing-listener", work)
            return opened.take()
        except BaseException:
            opened.abandon()
            raise

    def _hear(self) -> None:
        self._heard += 1
        self._wake()

    def _established(self) -> None:
        _logger.info("listening", extra=self._details | {"failures": self._failures})
        self._hooks.event("worker.listening", channel=self._channel)
        self._failures = 0
        self._is_listening, self._has_warned = True, False
        self._hear()

    def _lost(self, error: Exception) -> float:
        """Say so, once for each outage; gives the seconds to wait."""
        self._failures += 1
        delay = delay_after(
            self._failures, first=self._config.retry_delay, most=self._config.max_retry_delay, jitter=random.random()
        )
        if self._failures == 1:
            _logger.warning(
                "not listening; polling until it is possible again",
                exc_info=error,
                extra=self._details | {"retry_after": delay},
            )
            self._hooks.event("worker.listener_lost", channel=self._channel, retry_after=delay)
            self._wake()
        return delay


class _Handover:
    """A connection on its way from the thread that opens it; nobody may be waiting for it any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._notifications: Notifications | None = None

    def put(self, notifications: Notifications) -> None:
        with self._lock:
            if self._is_abandoned:
                notifications.close()
            else:
                self._notifications = notifications

    def take(self) -> Notifications:
        with self._lock:
            assert self._notifications is not None
            return self._notifications

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
            if self._notifications is not None:
                self._notifications.close()
