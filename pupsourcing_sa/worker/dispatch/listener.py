"""The listener: receives the notifications of commits on a connection of its own, and wakes the dispatcher.

::

                  ┌─────────── connected, LISTEN in effect ───────┐
                  │                                               v
    start ──> connecting                                      listening ──> on a notification: wake the dispatcher
                  ^                                               │
                  │  after a delay that grows with each failure   │
                  └──── waiting <─────── connection lost ─────────┘
                           ^  │
                           └──┘ connecting failed

The listener also wakes the dispatcher when it enters *listening* or *waiting*. The dispatcher then finds events
that were committed before LISTEN took effect, and it polls at short intervals while nothing listens.

A notification carries no data. PostgreSQL delivers it after the commit has become visible. The listener cannot notice a
notification that is never delivered: the network may be gone without an error, or a pooler may have lent the connection
to another client. The dispatcher notices that the log has grown without one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from sqlalchemy.orm import Session

from pupsourcing_sa.store import EventStore
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.dispatch.notifications import Notifications, open_notifications
from pupsourcing_sa.worker.execution.protocol import BindHandler, Execution
from pupsourcing_sa.worker.lifecycle.outage import Outage
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.tasks import wait_for_event

__all__ = ["Listener"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Listener(Service):
    """Listener on one channel. Everything except opening the connection happens in the event loop.

    Args:
        channel: name of the channel.
        execution: opens connections, in a thread or in a greenlet.
        store: the log; its table selects the engine of a session with several binds.
        config: the worker's settings.
        wake: called in the event loop at each notification, and when the connection is made or lost.
        worker_id: the node, for logs and hooks.
        hooks: receive connections made and lost.
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
        super().__init__("pupsourcing-listener")
        self._channel = channel
        self._execution = execution
        self._store = store
        self._wake = wake
        self._hooks = hooks
        self._details = {"worker": worker_id, "channel": channel}
        self._outage = Outage(
            "lost the notification connection; polling until it is back",
            details=self._details,
            first_delay=config.retry_delay,
            max_delay=config.max_retry_delay,
            hide_parameters=config.hide_parameters,
        )
        self._is_listening = False
        # Number of wake-ups: now, when this poll began, and when the last successful poll began.
        self._wake_ups = 0
        self._wake_ups_at_begin = 0
        self._wake_ups_before = 0
        self._unannounced_growths = 0
        self._has_warned = False

    @property
    def is_reliable(self) -> bool:
        """True if commits are notified, as far as the listener can know."""
        return self._is_listening and not self._unannounced_growths

    def begin_poll(self) -> None:
        """Note that the dispatcher begins a poll."""
        self._wake_ups_at_begin = self._wake_ups

    def finish_poll(self, *, has_grown: bool) -> None:
        """Note that the poll succeeded, and count consecutive polls with unannounced growth.

        Growth of the log is unannounced if no notification came since the previous successful poll began.
        """
        before, self._wake_ups_before = self._wake_ups_before, self._wake_ups_at_begin
        if self._wake_ups != before or not self._is_listening:
            self._unannounced_growths = 0
        elif has_grown:
            self._unannounced_growths += 1
            # After the first such poll, the notification may still be on its way. Warn once for each connection: the
            # events may come from stores without a channel.
            if self._unannounced_growths == 2 and not self._has_warned:
                self._has_warned = True
                _logger.warning("events arrive without notifications; polling", extra=self._details)

    async def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                error = await self._unless_stopped(self._listen())
            except Exception as failure:
                error = failure
            if error is not None:
                await wait_for_event(self.stopping, self._lost(error))

    async def _listen(self) -> Exception:
        """Connect, listen until the connection is lost, and return the reason."""
        notifications = await self._open()
        try:
            losses: asyncio.Queue[Exception] = asyncio.Queue()
            notifications.start(self._notified, losses.put_nowait)
            self._established()
            return await losses.get()
        finally:
            self._is_listening = False
            notifications.close()

    async def _open(self) -> Notifications:
        opened = _Handover()

        def work(session: Session, _: BindHandler) -> None:
            # Take the engine of the session, as the store does, but begin no transaction.
            bind = session.get_bind(clause=self._store.tables.events)
            opened.put(open_notifications(bind.engine, self._channel))

        try:
            await self._execution("pupsourcing-listener", work)
            return opened.take()
        except BaseException:
            opened.abandon()
            raise

    def _notified(self) -> None:
        self._wake_ups += 1
        self._wake()

    def _established(self) -> None:
        _logger.info("listening for notifications", extra=self._details | {"failures": self._outage.over()})
        self._hooks.event("worker.listening", channel=self._channel)
        self._is_listening, self._has_warned = True, False
        self._notified()

    def _lost(self, error: Exception) -> float:
        """Report the loss once for each outage, and return the seconds until the next attempt."""
        delay = self._outage.failed(error)
        if self._outage.failures == 1:
            self._hooks.event("worker.listener_lost", channel=self._channel, retry_after=delay)
            self._wake()
        return delay


class _Handover:
    """Handover of a connection from the thread that opens it. The receiver may be gone by then.

    Both sides hold the lock, so that exactly one of them closes an abandoned connection.
    """

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
