"""Careful mode: handle the events of a partition one by one, to find the event that kills its process.

::

    batches ──── the locked checkpoint has 2 deaths or more ────▶ one event at a time
       ▲                                                            │  announce it · handle it · commit
       │                                                            │
       └──── past every event that the fatal batch could have had ──┘
             (deaths = 0)

    the process dies meanwhile: the leader counts a failed attempt at the announced event

**Evidence.** ``consumer_checkpoints.deaths`` counts nodes that died while they had the partition, since a batch moved
the checkpoint. `pupsourcing_sa.worker.coordination.deaths` counts. One death costs nothing, because it may have any
reason; a batch that is committed sets the count to 0.

**Announcement.** Before each event, a transaction of its own writes the event to the node's row. It also checks that
the node has a row: a node that was presumed dead handles no event alone. In one process, only one partition at a time
is in careful mode, so the announced event is the one that kills it. A partition does not wait for another one for
longer than ``stall_warning``, because the other one may hang.

**The end.** The fatal batch had at most ``batch_size`` events, and only events that the log had then. Careful mode
therefore ends after ``batch_size`` events, or at the stable position of its beginning. Until then every batch writes
``deaths`` back unchanged. A process that is restarted in between begins again. If batches set it to 0 at once, each
event before the killer would cost two more deaths.

A drain belongs to no node: it can neither announce events nor leave evidence, and ignores ``deaths``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.postgres.connections import connection_of
from pupsourcing_sa.status import SUSPICIOUS_DEATHS
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker.running import Announcement, merged, to_text

__all__ = ["Announcements", "CarefulMode", "is_suspicious"]


def is_suspicious(deaths: int) -> bool:
    """Return True if a partition must be run in careful mode after this number of deaths."""
    return deaths >= SUSPICIOUS_DEATHS


@dataclass(frozen=True, slots=True)
class CarefulMode:
    """The careful mode of one partition. Pure: values in, new values out.

    Attributes:
        events: number of events that are still to be handled alone.
        up_to: stable position of its beginning.
    """

    events: int
    up_to: int

    def after(self, handled: int, scanned: int) -> CarefulMode | None:
        """Return the mode of the next batch; ``None`` if it need not be careful.

        Args:
            handled: number of events that the batch has handled.
            scanned: every event of the scope up to this position is handled.
        """
        events = self.events - handled
        return None if events <= 0 or scanned >= self.up_to else replace(self, events=events)


class Announcements:
    """The announcements of one node, of which the last one counts.

    Args:
        tables: the tables with the node's row.
        worker_id: the node.
        patience: seconds to wait for another partition that is in careful mode.
    """

    def __init__(self, tables: WorkerTables, worker_id: UUID, patience: float) -> None:
        self._table = tables.worker_nodes
        self._worker_id = worker_id
        self._patience = patience
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep other partitions of this node from announcing, on the event loop."""
        has_turn = False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                has_turn = await self._turn.acquire()
        try:
            yield
        finally:
            if has_turn:
                self._turn.release()

    def write(self, session: Session, announcement: Announcement | None) -> bool:
        """Announce an event, or none. Return False if the node has no row, because it was presumed dead."""
        connection = connection_of(session, self._table.update())
        return connection.execute(self._write, {"running": to_text(announced=announcement)}).rowcount == 1

    @cached_property
    def _write(self) -> Any:
        own = self._table.update().where(self._table.c.worker_id == self._worker_id)
        return own.values(running=merged(self._table.c.running))
