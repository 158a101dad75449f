"""SIGINT and SIGTERM, for a worker that owns its process.

::

    running ── first signal ──▶ stopping ── the worker has stopped ──────────────▶ the process continues
                                   ├─────── second signal ───────────────────────▶ the process ends at once
                                   └─────── shutdown_timeout + WATCHDOG_SECONDS ─▶ the process ends, status 1

`shutdown` has the timeline of what happens while the worker is stopping.
"""

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
    """Stop the worker at the first signal, and end the process at the second.

    Two things can keep a worker from stopping: a coroutine handler that blocks the event loop, and a driver that rolls
    back on a connection whose other end has vanished. A watchdog then ends the process, like a crash: the server rolls
    back uncommitted changes.

    Args:
        stop: called at the first signal.
        shutdown_timeout: time for running batches to finish, in seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before: dict[signal.Signals, Any] = {}
    message = "worker did not stop in time: a handler blocks the event loop, or the server does not answer; exiting"
    watchdog = _timer(shutdown_timeout + shutdown.WATCHDOG_SECONDS, message)

    def handle(_: int, frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        watchdog.start()
        stop()

    # Not asyncio's signal handlers: they could not run while a coroutine handler blocks the event loop.
    for number in _SIGNALS:
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        watchdog.cancel()
        for number, handler in before.items():
            if handler is not None:  # Python cannot restore a handler that was not installed from Python
                signal.signal(number, handler)


def limit_exit(
    seconds: float, message: str = "worker has stopped, but threads keep its process alive; exiting"
) -> threading.Timer:
    """Start a timer that ends the process, and return the timer, which can be cancelled.

    At exit, Python waits for the threads of executors without a limit, and a handler's work may hang there.
    """
    timer = _timer(seconds, message)
    timer.start()
    return timer


def leave(message: str) -> None:
    """Log the message and end the process at once.

    Logging has a time limit: it blocks on a full pipe whose reader hangs.
    """

    def log() -> None:
        _logger.critical(message)
        logging.shutdown()

    logging_thread = threading.Thread(target=log, daemon=True)
    logging_thread.start()
    logging_thread.join(shutdown.LAST_LOG_SECONDS)
    os._exit(1)


def _timer(seconds: float, message: str) -> threading.Timer:
    timer = threading.Timer(seconds, leave, (message,))
    timer.daemon = True
    return timer
