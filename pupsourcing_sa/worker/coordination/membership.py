"""Node membership: joining, heartbeats, planning and leaving.

A node is a row of ``worker_nodes``. Nodes communicate through tables only::

               join                      tick                  hand_over               leave
    (no row) ────────▶ (heartbeats) ───────────▶ (heartbeats) ──────────▶ (no consumers) ─────▶ (no row)
                            ▲    │ no heartbeat for heartbeat_timeout: another node removes the row
                            └────┘ the next tick joins again

**Leadership.** A node becomes the leader of a single transaction by taking an advisory lock. The lock ends with the
transaction, so there is no lease to renew, and no election when a leader dies. A tick plans only if it gets the lock at
once. `join`, `hand_over` and `leave` wait for the lock and plan in the same transaction, so that partitions move
immediately. The server terminates a leader that is idle in its transaction for ``heartbeat_timeout``.

**Failure detection.** The leader removes nodes whose last heartbeat is older than ``heartbeat_timeout``, by the
database's clock. After a database outage it first waits for one ``heartbeat_timeout``, because no node could send
heartbeats during the outage. A node that joins also removes nodes whose processes have certainly ended: see
`pupsourcing_sa.worker.coordination.processes`. `pupsourcing_sa.worker.coordination.deaths` records what a removed node
may have died of.

**Deleted rows.** An operator may delete rows while nodes run. A leader declares the partitions of its own consumers
again if their assignments are missing. Each node becomes the leader sooner or later, so this covers every consumer. A
node without a row joins again, and the next batch of a partition creates a missing checkpoint.

**Assignments are hints.** A node that has lost a partition may still be in a batch, and so may a node that was presumed
dead. The lock on the checkpoint ensures that each event is applied once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.errors import PartitionsError
from pupsourcing_sa.postgres.connections import connection_of, require_transaction
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.coordination.assignments import Assignments
from pupsourcing_sa.worker.coordination.deaths import Deaths
from pupsourcing_sa.worker.coordination.nodes import Nodes
from pupsourcing_sa.worker.coordination.plan import plan
from pupsourcing_sa.worker.partition import Partition, PartitionState

__all__ = ["Membership"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Membership:
    """The membership of one node in its group.

    Every method that takes a session is one transaction: it expects a new session, and commits.

    Args:
        tables: the tables of the group.
        worker_id: the node.
        subscriptions: the consumers of the node.
        config: the worker's settings.
        hooks: receive rebalancing and removed nodes.
        clock: returns seconds, as ``time.monotonic`` does.

    Attributes:
        joined_at: time of the first `join`, by the database's clock; ``None`` before it.
    """

    def __init__(
        self,
        tables: WorkerTables,
        worker_id: UUID,
        subscriptions: Iterable[Subscription],
        config: WorkerConfig,
        hooks: Hooks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tables = tables
        self._nodes = Nodes(tables)
        self._assignments = Assignments(tables)
        self._deaths = Deaths(tables, worker_id, config, hooks)
        self._worker_id = worker_id
        self._partitions = {subscription.name: subscription.scope.partitions for subscription in subscriptions}
        self._consumers = sorted(self._partitions)
        self._config = config
        self._hooks = hooks
        self._clock = clock
        self._details = {"worker": str(worker_id)}
        self.joined_at: datetime | None = None
        self._last_beat = clock()
        self._last_plan = clock()
        #: Silence of other nodes before this time may be due to an outage.
        self._may_remove_from = clock()
        self._is_leaving = False
        #: Consumers whose partitions were refused by `_restore`; each is logged once.
        self._refused: set[str] = set()
        self._is_idle = False

    @property
    def tick_interval(self) -> float:
        """Seconds between two ticks."""
        return min(self._config.heartbeat_interval, self._config.rebalance_interval)

    def note_outage(self) -> None:
        """Remove no silent node until every node has had time to send a heartbeat."""
        self._may_remove_from = self._clock() + self._config.heartbeat_timeout

    def abandon_join(self) -> None:
        """Make a `join` that still runs in a thread roll back. Call `leave` afterwards."""
        self._is_leaving = True

    def declare(self, session: Session) -> None:
        """Ensure that the tables have a row for every partition, without joining.

        Raises:
            PartitionsError: a consumer has rows for another number of partitions.
            TablesMissingError: the tables do not exist.
        """
        connection = self._begin(session)
        self._declare(connection)
        session.commit()

    def join(self, session: Session) -> dict[Partition, PartitionState]:
        """Join, or join again. Return the partitions to run, with their states in the table.

        Raises:
            PartitionsError: a consumer has rows for another number of partitions.
            TablesMissingError: the tables do not exist.
        """
        connection = self._begin(session)
        self._declare(connection)
        now = self._nodes.write(connection, self._worker_id, self._consumers)
        self._rebalance(connection, is_joining=True)
        runnable = self._assignments.runnable(connection, self._worker_id)
        if self._is_leaving:
            # `leave` has run already, or it waits for the leader's lock, which this transaction holds.
            session.rollback()
            return {}
        session.commit()
        self._last_beat = self._last_plan = self._clock()
        self.joined_at = self.joined_at or now
        return runnable

    def tick(self, session: Session, batches: Iterable[RunningBatch] = ()) -> dict[Partition, PartitionState] | None:
        """Send a heartbeat and plan, each if it is due. Return the partitions to run, as `join` does.

        Args:
            session: the session.
            batches: the batches that the node runs.

        Returns:
            ``None`` if the node was presumed dead and removed. It has to join again.
        """
        config, now = self._config, self._clock()
        silence, tolerance = now - self._last_beat, self.tick_interval / 2
        connection = self._begin(session)
        is_beating = silence + tolerance >= config.heartbeat_interval
        if is_beating and not self._nodes.beat(connection, self._worker_id, batches):
            return None
        if silence > max(config.heartbeat_timeout / 2, 2 * config.heartbeat_interval):
            self.note_outage()
        is_planning = now - self._last_plan + tolerance >= config.rebalance_interval
        if is_planning:
            with self._hooks.span("worker.rebalance") as data:
                data["is_leader"] = self._nodes.try_to_lead(connection)
                if data["is_leader"]:
                    data["nodes"], data["moved"] = self._rebalance(connection)
        runnable = self._assignments.runnable(connection, self._worker_id)
        session.commit()
        if is_beating:
            self._last_beat = now
        if is_planning:
            self._last_plan = now
        return runnable

    def hand_over(self, session: Session) -> None:
        """Move all partitions to other nodes, but keep the node, so that its running batches can end."""
        self._consumers = []
        connection = self._begin(session)
        self._nodes.lead(connection)
        self._nodes.write(connection, self._worker_id, self._consumers)
        self._rebalance(connection)
        session.commit()

    def leave(self, session: Session) -> None:
        """Remove the node, and move its partitions to other nodes."""
        self._consumers = []
        connection = self._begin(session)
        self._nodes.lead(connection)
        self._nodes.remove(connection, self._worker_id)
        self._rebalance(connection)
        session.commit()

    def _begin(self, session: Session) -> Connection:
        connection = connection_of(session, self._tables.worker_nodes.update())
        require_transaction(connection)
        self._nodes.limit_idleness(connection, self._config.heartbeat_timeout)
        return connection

    def _declare(self, connection: Connection) -> None:
        tables = self._tables
        with translated(tables.worker_nodes, tables.consumer_assignments, tables.consumer_checkpoints):
            self._nodes.lead(connection)
            self._assignments.declare(connection, self._partitions)

    def _rebalance(self, connection: Connection, *, is_joining: bool = False) -> tuple[int, int]:
        """Remove dead nodes and write changed assignments, as the leader. Return the counts of nodes and moves."""
        # Before nodes are removed, because the foreign key then clears their assignments.
        current = self._assignments.all(connection)
        removed: set[UUID] = set()
        if is_joining:
            for node in self._nodes.remove_ended(connection):
                removed.add(node.worker_id)
                self._deaths.record(connection, node, current, "removed node: its process has ended")
        if self._clock() >= self._may_remove_from:
            for node in self._nodes.remove_silent(connection, self._config.heartbeat_timeout):
                removed.add(node.worker_id)
                self._deaths.record(connection, node, current, "removed node: no heartbeat")
        if removed:
            current = {partition: None if node in removed else node for partition, node in current.items()}
        nodes = self._nodes.all(connection)
        if self._restore(connection, current):
            current = self._assignments.all(connection)
        planned = plan(current, nodes)
        changes = {partition: planned[partition] for partition in current if planned[partition] != current[partition]}
        self._assignments.assign(connection, changes)
        if changes:
            _logger.info("partitions assigned", extra=self._details | {"nodes": len(nodes), "moved": len(changes)})
        self._report_idleness(nodes, planned)
        return len(nodes), len(changes)

    def _report_idleness(self, nodes: Mapping[UUID, Sequence[str]], planned: Mapping[Partition, UUID | None]) -> None:
        """Log that this node has no partition, once until it has one."""
        is_idle = bool(self._consumers) and self._worker_id not in planned.values()
        if is_idle and not self._is_idle:
            partitions = sum(partition.consumer in self._partitions for partition in planned)
            capable = sum(not self._partitions.keys().isdisjoint(consumers) for consumers in nodes.values())
            details = self._details | {"nodes": capable, "partitions": partitions}
            _logger.info("more nodes than partitions; this node waits until another one stops", extra=details)
        self._is_idle = is_idle

    def _restore(self, connection: Connection, current: Collection[Partition]) -> bool:
        """Declare partitions again whose assignments were deleted, as the leader. Return True if there were any."""
        is_restored = False
        for name in self._consumers:
            count = self._partitions[name]
            if all(Partition(name, number) in current for number in range(count)):
                self._refused.discard(name)
                continue
            details = self._details | {"consumer": name, "partitions": count}
            try:
                self._assignments.declare(connection, {name: count})
            except PartitionsError as error:
                if name not in self._refused:
                    details["existing"] = error.existing
                    _logger.error("the tables have another number of partitions; restart the node", extra=details)
                self._refused.add(name)
            else:
                is_restored = True
                _logger.warning("assignments were deleted; declared the partitions again", extra=details)
        return is_restored
