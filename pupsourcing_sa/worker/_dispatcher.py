"""The dispatcher: watches the stable position and wakes the processors up when it has moved."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.orm import Session

from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store._connection import connection_of, require_transaction
from pupsourcing_sa.worker._batch import Invoke
from pupsourcing_sa.worker._config import WorkerConfig
from pupsourcing_sa.worker._execution import Execution
from pupsourcing_sa.worker._stable import StablePosition, is_set_within

__all__ = ["dispatch", "look"]

_logger = logging.getLogger("pupsourcing_sa.worker")


async def look(execution: Execution, store: EventStore) -> int:
    """The stable position of this moment."""

    def work(session: Session, _: Invoke) -> int:
        require_transaction(connection_of(session, store.tables.events))  # a batch without one would not be a batch
        return store.stable_position(session)

    return await execution("pupsourcing-dispatcher", work)


async def dispatch(
    execution: Execution, store: EventStore, stable: StablePosition, config: WorkerConfig, stopping: asyncio.Event
) -> None:
    """Look at the log until the worker stops, soon again while it moves and less often while it does not."""
    pause, failures = config.poll_interval, 0
    while not stopping.is_set():
        has_moved = False
        try:
            has_moved = stable.publish(await look(execution, store))
        except Exception:
            if not failures:  # once for each outage
                _logger.warning("cannot read the stable position; will try again", exc_info=True)
            failures += 1
        else:
            if failures:
                _logger.info("can read the stable position again", extra={"failures": failures})
            failures = 0
        pause = config.poll_interval if has_moved else min(pause * 2, config.max_poll_interval)
        await is_set_within(stopping, pause)
