"""The demo's worker process: ``pupsourcing-sa worker pupsourcing_sa.demo.follower:worker``."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from pupsourcing_sa.demo import app
from pupsourcing_sa.worker import Worker

__all__ = ["PARENT", "worker"]

#: The variable that has the process id of the demo.
PARENT: Final = "PUPSOURCING_DEMO_PID"


def worker() -> Worker:
    """The application's worker, which stops when the demo is no longer there to stop it."""
    made = app.worker()
    parent = int(os.environ[PARENT])  # getppid() may be somebody else's by now
    threading.Thread(target=_stop_without, args=(parent, made), name="parent-watch", daemon=True).start()
    return made


def _stop_without(parent: int, worker: Worker) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    worker.stop()
