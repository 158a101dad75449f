"""The demo's worker process: ``pupsourcing-sa worker pupsourcing_sa.demo.follower:worker``."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from pupsourcing_sa.demo import app
from pupsourcing_sa.worker import Worker

__all__ = ["PARENT", "worker"]

#: Environment variable with the process id of the demo.
PARENT: Final = "PUPSOURCING_DEMO_PID"


def worker() -> Worker:
    """Return the application's worker. It stops when the process of the demo has ended."""
    node = app.worker()
    # Not getppid(): if the demo has already ended, it returns the id of another process.
    parent = int(os.environ[PARENT])
    threading.Thread(target=_stop_without, args=(parent, node), name="parent-watch", daemon=True).start()
    return node


def _stop_without(parent: int, worker: Worker) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    worker.stop()
