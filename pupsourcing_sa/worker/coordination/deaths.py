"""Deaths: evidence in the checkpoints of a node that died, and the event that killed its process.

A node that dies of an event, for example because it is out of memory or crashes in C, records nothing. The leader that
removes its row records for it, in the same transaction::

    what the node left                            what the leader writes to the checkpoint, unless its row is locked
    a partition that was assigned to it, or       deaths + 1
    in which it had a batch
    the announcement of an event above the        a failed attempt at the event, with the next one after a delay, or
    checkpoint                                    the partition is parked by the policy in the announcement

A processor announces an event when it finds ``deaths`` in its checkpoint: see
`pupsourcing_sa.worker.processing.careful`.

- A node that stops in an orderly way has no consumers any longer, so nothing is recorded for it.
- Rows that are locked are skipped. A leader must not wait for a batch, and a batch that still has its lock belongs to a
  node that was frozen or cut off.
- A batch that was committed has moved its checkpoint past the announced event, so the announcement counts nothing.
- A partition is never parked because of a single death: an operator or a deployment may have killed the process.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Integer, Interval, Row, Text, and_, bindparam, func, null, select
from sqlalchemy.dialects.postgresql import ARRAY

from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.coordination.nodes import RemovedNode
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.running import Announcement

__all__ = ["Deaths", "attempt_after_death", "partitions_of"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: A partition is not parked after fewer failed attempts, whatever the policy of its consumer.
_MIN_ATTEMPTS: Final = 2


def partitions_of(node: RemovedNode, assigned: Mapping[Partition, UUID | None]) -> set[Partition]:
    """Return the partitions in which a node may have died; none if it was stopping.

    Args:
        node: the node.
        assigned: the node of each partition, before the node was removed.
    """
    if not node.consumers:
        return set()
    partitions = {partition for partition, worker_id in assigned.items() if worker_id == node.worker_id}
    partitions |= {Partition(batch.consumer, batch.partition) for batch in node.batches}
    # The node may have lost the partition since it announced the event.
    return partitions if node.announced is None else partitions | {node.announced.key}


def attempt_after_death(
    announced: Announcement, *, position: int, failed_position: int | None, attempts: int
) -> tuple[int, bool] | None:
    """Return the number of failed attempts at the announced event, and True if they park the partition.

    Args:
        announced: the event that the node handled.
        position: position of the checkpoint.
        failed_position: position of the failing event in the checkpoint.
        attempts: number of failed attempts at it.

    Returns:
        ``None`` if the batch with the event was committed.
    """
    if position >= announced.position:
        return None
    attempts = 1 + (attempts if failed_position == announced.position else 0)
    is_parked = announced.max_attempts is not None and attempts >= max(announced.max_attempts, _MIN_ATTEMPTS)
    return attempts, is_parked


class Deaths:
    """The evidence of dead nodes in the checkpoints, and in the log.

    Args:
        tables: the group's tables.
        worker_id: the node that finds the others dead.
        config: its settings.
        hooks: receive removed nodes and failed attempts.
    """

    def __init__(self, tables: WorkerTables, worker_id: UUID, config: WorkerConfig, hooks: Hooks) -> None:
        table = self._table = tables.consumer_checkpoints
        self._details = {"worker": str(worker_id)}
        self._config = config
        self._hooks = hooks
        self._is_own = and_(
            table.c.consumer_name == bindparam("own_consumer"), table.c.partition == bindparam("own_partition")
        )

    def record(
        self, connection: Connection, node: RemovedNode, assigned: Mapping[Partition, UUID | None], message: str
    ) -> None:
        """Record the death of a node, and a failed attempt at the event that it had announced.

        Args:
            connection: in the leader's transaction, which has removed the node.
            node: the node.
            assigned: the node of each partition, before the node was removed.
            message: the log message about the removal.
        """
        details: dict[str, Any] = {"node": str(node.worker_id), "seconds": round(node.silence, 1)}
        if node.batches:
            details["batches"] = [asdict(batch) for batch in node.batches]
        _logger.warning(message, extra=self._details | details)
        self._hooks.event("worker.node_removed", node=str(node.worker_id))
        rows = self._count(connection, sorted(partitions_of(node, assigned)))
        announced = node.announced
        if announced is None or announced.key not in rows:
            return
        row = rows[announced.key]
        counted = attempt_after_death(
            announced, position=row.last_position, failed_position=row.failed_position, attempts=row.attempts
        )
        if counted is not None:
            self._count_attempt(connection, node, announced, *counted)

    def _count_attempt(
        self, connection: Connection, node: RemovedNode, announced: Announcement, attempts: int, is_parked: bool
    ) -> None:
        event: dict[str, Any] = {
            "consumer": announced.consumer,
            "partition": announced.partition,
            "event_id": announced.event_id,
            "event_type": announced.event_type,
            "global_position": announced.position,
            "attempts": attempts,
        }
        details = self._details | {"node": str(node.worker_id), "host": node.hostname, "pid": node.pid}
        if is_parked:
            self._write(connection, node, announced, attempts, None)
            _logger.error("event killed its process; partition is parked", extra=details | event)
            self._hooks.event("worker.parked", **event)
        else:
            event["retry_after"] = self._delay(attempts)
            self._write(connection, node, announced, attempts, event["retry_after"])
            _logger.error("event killed its process; will retry", extra=details | event)
            self._hooks.event("worker.event_failed", **event)

    def _delay(self, failures: int) -> float:
        config = self._config
        return delay_after(failures, first=config.retry_delay, max_delay=config.max_retry_delay, jitter=random.random())

    def _count(self, connection: Connection, partitions: list[Partition]) -> dict[Partition, Row[Any]]:
        """Count the death in the checkpoints of these partitions. Return those that were not locked or parked."""
        if not partitions:
            return {}
        table, c = self._table, self._table.c
        wanted = (
            func.unnest(
                bindparam("names", [partition.consumer for partition in partitions], type_=ARRAY(Text)),
                bindparam("numbers", [partition.number for partition in partitions], type_=ARRAY(Integer)),
            )
            .table_valued("consumer_name", "partition")
            .render_derived(name="wanted")
        )
        free = (
            select(c.consumer_name, c.partition)
            .join(wanted, and_(wanted.c.consumer_name == c.consumer_name, wanted.c.partition == c.partition))
            .where(c.parked_at.is_(None))
            .with_for_update(of=table, skip_locked=True)
            .cte("pupsourcing_free")
        )
        counted = (
            table.update()
            .where(c.consumer_name == free.c.consumer_name, c.partition == free.c.partition)
            .values(deaths=c.deaths + 1)
            .returning(c.consumer_name, c.partition, c.last_position, c.failed_position, c.attempts)
        )
        return {Partition(row.consumer_name, row.partition): row for row in connection.execute(counted)}

    def _write(
        self,
        connection: Connection,
        node: RemovedNode,
        announced: Announcement,
        attempts: int,
        retry_after: float | None,
    ) -> None:
        """Write the failed attempt to the checkpoint; without a next one the partition is parked."""
        values: dict[str, Any] = {
            "failed_position": announced.position,
            "attempts": attempts,
            "error": f"the worker process died while it handled this event alone: node {node.worker_id}, host "
            f"{node.hostname}, pid {node.pid}. The event may exhaust its memory or crash it; look for the reason in "
            "the logs of the process and of the operating system",
            "failed_at": func.now(),
            "retry_at": null(),
            "parked_at": func.now(),
        }
        if retry_after is not None:
            delay = bindparam("delay", timedelta(seconds=retry_after), type_=Interval())
            values |= {"retry_at": func.now() + delay, "parked_at": null()}
        own = {"own_consumer": announced.consumer, "own_partition": announced.partition}
        connection.execute(self._table.update().where(self._is_own).values(values), own)
