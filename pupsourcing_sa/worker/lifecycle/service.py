"""One lifecycle contract for everything that runs in the background of a worker.

Node, drain, dispatcher, listener and processor are services::

            start()                  the body returns or raises
    new ──────────────▶ running ───────────────────────────────▶ ended
     │                     │                                       ▲
     │ stop()              │ stop()                                │
     ▼        start()      ▼         the body returns soon         │
    stopped ──────────▶ stopping ──────────────────────────────────┘

- `start` runs the body in a new task and returns that task. A service starts once.
- `stop` asks the body to return. It returns at once. It may be called at any time and any number of times, from the
  event loop. A service that was stopped before its start never runs its body.
- Cancelling the task ends the body at its current await. The body skips its orderly part: a node does not wait for its
  batches.
- However the body ends, it leaves nothing behind: no task, no timer, no open connection. A thread that waits in a
  database driver cannot be ended. Its result is discarded, and it closes its own connection when the driver returns.

A subclass writes the body, `_run`. Every wait of the body ends when `stopping` is set; where that takes more than
`wait_for_event`, `with_timeout` or `_unless_stopped`, the subclass extends `stop`. The body owns the tasks that it
creates, and ends them in a ``finally`` with `cancel_all`. ``tests/worker/test_lifecycle.py`` starts, stops and cancels
every service at every await.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pupsourcing_sa.worker.lifecycle.tasks import cancel_all

__all__ = ["Service"]

_T = TypeVar("_T")


class Service:
    """A background activity that starts once and can be stopped at any time.

    Args:
        name: name of the task.

    Attributes:
        name: name of the task.
        stopping: set once the service was asked to stop. Threads may read it; only the event loop sets it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Run the body in a new task and return the task.

        Raises:
            RuntimeError: the service has been started before.
        """
        if self._task is not None:
            raise RuntimeError(f"service {self.name!r} was started twice; create a new one")
        self._task = asyncio.create_task(self._run_unless_stopped(), name=self.name)
        return self._task

    def stop(self) -> None:
        """Ask the body to return soon."""
        self.stopping.set()

    async def _run_unless_stopped(self) -> None:
        if not self.stopping.is_set():
            await self._run()

    async def _run(self) -> None:
        """Do the work until `stopping` is set."""
        raise NotImplementedError

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Return the result of the work. If the service is stopped first, cancel the work and return ``None``."""
        task = asyncio.create_task(work, name=f"{self.name}-work")
        stopped = asyncio.create_task(self.stopping.wait(), name=f"{self.name}-stopped")
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            await cancel_all({task, stopped})
