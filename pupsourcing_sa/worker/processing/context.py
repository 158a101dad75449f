"""The context of a partition: everything that stays the same from batch to batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pupsourcing_sa.consumer import Scope, Subscription
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.telemetry import NO_TELEMETRY, Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.execution.protocol import Execution
from pupsourcing_sa.worker.processing.careful import Announcements
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.turn_lock import TurnLock
from pupsourcing_sa.worker.running import Announcement

__all__ = ["PartitionContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionContext:
    """A partition of a consumer, and the means to process it.

    Attributes:
        subscription: the consumer.
        scope: the events of the partition.
        store: the log.
        checkpoint: the checkpoint of the partition.
        execution: runs database work, in threads or greenlets.
        config: the worker's settings.
        is_aborted: returns True once running batches must roll back. The event loop sets it, threads read it.
        hooks: telemetry.
        turn_lock: shared by the partitions of the consumer in this process.
        worker_id: the node that the partition is assigned to; ``None`` in a drain.
        started_at: time at which the node joined for the first time, by the database's clock; ``None`` in a drain.
        announcements: the announcements of that node; ``None`` in a drain.
        clock: returns seconds, as ``time.monotonic`` does.
    """

    subscription: Subscription
    scope: Scope
    store: EventStore
    checkpoint: Checkpoint
    execution: Execution
    config: WorkerConfig
    is_aborted: Callable[[], bool]
    hooks: Hooks = NO_TELEMETRY
    turn_lock: TurnLock = field(default_factory=lambda: TurnLock(max_wait=5.0))
    worker_id: UUID | None = None
    started_at: datetime | None = None
    announcements: Announcements | None = None
    clock: Callable[[], float] = time.monotonic

    @property
    def name(self) -> str:
        """Name of the partition's task and threads."""
        return f"pupsourcing-{self.subscription.name}-{self.scope.partition}"

    @property
    def details(self) -> dict[str, Any]:
        """Data of every log message and telemetry event of the partition."""
        return {"consumer": self.subscription.name, "partition": self.scope.partition}

    def announcement_of(self, event: PersistedEvent) -> Announcement:
        """Return the announcement of an event of the partition."""
        return Announcement(
            consumer=self.subscription.name,
            partition=self.scope.partition,
            position=event.global_position,
            event_id=str(event.event_id),
            event_type=event.event_type,
            max_attempts=self.subscription.max_attempts,
        )
