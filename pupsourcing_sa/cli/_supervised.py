"""The node's end of the pipe to its supervisor (see `pupsourcing_sa.cli._supervisor`)."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.signals import leave

__all__ = ["SupervisedNode"]


class SupervisedNode:
    """A node that stops when the stream from its supervisor ends.

    If the stream ends before `attach`, the process exits at once, because it runs no batch. Later, it stops the worker
    first. If a handler blocks the event loop for too long, the process exits anyway.

    Args:
        descriptor: the inherited socket.

    Raises:
        OSError: the descriptor is not a socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        # Processes that the application starts must not keep the pipe open.
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        threading.Thread(target=self._watch, name="pupsourcing-supervised", daemon=True).start()

    def attach(self, worker: Worker) -> None:
        """Stop this worker, which is about to run, when the stream ends."""
        with self._lock:
            self._worker = worker

    def report_ready(self) -> None:
        """Report to the supervisor that the worker has joined."""
        assert self._worker is not None
        with suppress(OSError):  # if the supervisor was killed, the other thread notices it
            self._socket.sendall(b"%f\n" % self._worker.config.shutdown_timeout)

    def _watch(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)  # the supervisor sends nothing
        with self._lock:
            if self._worker is None:
                os._exit(0)
        self._worker.stop()
        time.sleep(self._worker.config.shutdown_timeout + shutdown.WATCHDOG_SECONDS)
        leave("worker did not stop in time; exiting")
