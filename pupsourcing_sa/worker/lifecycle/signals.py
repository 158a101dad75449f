"""SIGINT and SIGTERM, while a worker runs in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pupsourcing_sa.worker.lifecycle import shutdown

__all__ = ["handling_signals", "leave", "limit_exit"]

_logger = logging.getLogger("pupsourcing_sa.worker")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handling_signals(stop: Callable[[], None], shutdown_timeout: float) -> Iterator[None]:
    """Stop at the first signal; a second one ends the process at once.

    A handler that blocks the event loop itself, as a coroutine can, keeps the worker from stopping, and so may a driver
    that rolls back on a connection whose other end has vanished. The process is then ended when the time for the
    shutdown is over, as by a crash: what is not committed is rolled back by the server.

    Args:
        stop: called once.
        shutdown_timeout: how long stopping may take, in seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before: dict[signal.Signals, Any] = {}
    message = "the worker did not stop in time: a handler blocks the event loop, or the server does not answer; leaving"
    watchdog = _timer(shutdown_timeout + shutdown.WATCHDOG_SECONDS, message)

    def handle(number: int, frame: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        watchdog.start()
        stop()

    # Not by the event loop, which does not come to it while a handler blocks it.
    for each in _SIGNALS:
        before[each] = signal.signal(each, handle)
    try:
        yield
    finally:
        watchdog.cancel()
        for each, handler in before.items():
            if handler is not None:  # it was not installed by Python, and cannot be put back
                signal.signal(each, handler)


def limit_exit(
    seconds: float, message: str = "the worker has stopped, and threads keep its process from ending; leaving"
) -> threading.Timer:
    """Have the process end within so many seconds, although Python waits for the threads of pools for ever.

    Something that a handler has begun may hang in one of them. Gives the timer, which can be cancelled.
    """
    timer = _timer(seconds, message)
    timer.start()
    return timer


def leave(message: str) -> None:
    """End the process at once. Logging must not be in its way, as with a full pipe that nobody reads any more."""

    def say() -> None:
        _logger.critical(message)
        logging.shutdown()

    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    saying.join(shutdown.LAST_LOG_SECONDS)
    os._exit(1)


def _timer(seconds: float, message: str) -> threading.Timer:
    timer = threading.Timer(seconds, leave, (message,))
    timer.daemon = True
    return timer
