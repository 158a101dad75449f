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

**Stopping.** An assignment means that the partition should be running. `hand_over`, `leave` and `retire` delete the
assignments of consumers that no remaining node has. A node that dies leaves its assignments behind, without a node, so
that ``status`` reports them.

**Deleted rows.** An operator may delete rows while nodes run. A leader declares the partitions of its own consumers
again if their assignments are missing. Each node becomes the leader sooner or later, so this covers every consumer. A
node without a row joins again, and the next batch of a partition creates a missing checkpoint. Consumers that were
removed by an operation stay removed.

**Several logs.** Nodes of different logs may share the tables: a partition goes only to nodes that have its consumer.
A node refuses a consumer whose rows belong to another log or to another number of partitions. While it runs, it
withdraws such a consumer from its row, and gets none of its partitions.

**Assignments are hints.** A node that has lost a partition may still be in a batch, and so may a node that was presumed
dead. The lock on the checkpoint ensures that each event is applied once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.errors import LogMismatchError, PartitionsError
from pupsourcing_sa.postgres.connections import connection_of, require_transaction
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.coordination.assignments import Assignment, Assignments
from pupsourcing_sa.worker.coordination.deaths import Deaths
from pupsourcing_sa.worker.coordination.nodes import Nodes
from pupsourcing_sa.worker.coordination.plan import plan
from pupsourcing_sa.worker.coordination.removals import Removals
from pupsourcing_sa.worker.partition import Partition, PartitionState

__all__ = ["Membership"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Membership:
    """The membership of one node in its group.

    Every method that takes a session is one transaction: it expects a new session, and commits.

    Args:
        tables: the tables of the group.
        log: the name of the node's log.
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
        log: LogName,
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
        self._removals = Removals(tables)
        self._log_name = log
        #: Name of the log when it was last read.
        self._log: str | None = None
        self._worker_id = worker_id
        subscriptions = list(subscriptions)
        self._partitions = {subscription.name: subscription.scope.partitions for subscription in subscriptions}
        #: Position after which each reaction begins: a new one if it has no checkpoint, or the one in the table.
        self.starts = {subscription.name: 0 for subscription in subscriptions if subscription.reacts}
        self._config = config
        self._hooks = hooks
        self._clock = clock
        self._details = {"worker": str(worker_id)}
        self.joined_at: datetime | None = None
        self._last_beat = clock()
        self._last_plan = clock()
        #: Silence of other nodes before this time may be due to an outage.
        self._may_remove_from = clock()
        self._has_joined = self._is_stopping = self._is_leaving = False
        #: Consumers that the running node must not run; each is logged once.
        self._refused: set[str] = set()
        self._is_idle = False

    @property
    def tick_interval(self) -> float:
        """Seconds between two ticks."""
        return min(self._config.heartbeat_interval, self._config.rebalance_interval)

    def begin_reactions_at(self, position: int) -> None:
        """Set the position after which reactions begin that have no checkpoint yet; call this before declaring them."""
        self.starts.update(dict.fromkeys(self.starts, position))

    def note_outage(self) -> None:
        """Remove no silent node until every node has had time to send a heartbeat."""
        self._may_remove_from = self._clock() + self._config.heartbeat_timeout

    def abandon_join(self) -> None:
        """Make a `join` that still runs in a thread roll back. Call `leave` afterwards."""
        self._is_leaving = True

    def declare(self, session: Session) -> None:
        """Ensure that every partition has a checkpoint, without joining.

        Raises:
            LogMismatchError: a consumer has rows for another log.
            PartitionsError: a consumer has rows for another number of partitions.
            TablesMissingError: the tables do not exist.
        """
        connection = self._begin(session)
        log = self._read_log(session)
        self._lead(connection)
        self._declare(connection, self._partitions, log, is_assigned=False)
        session.commit()

    def retire(self, session: Session) -> None:
        """Delete the assignments of the consumers that no node has."""
        connection = self._begin(session)
        self._nodes.lead(connection)
        self._assignments.retire(connection, self._partitions, self._read_log(session))
        session.commit()

    def join(self, session: Session) -> dict[Partition, PartitionState]:
        """Join, or join again. Return the partitions to run, with their states in the table.

        A node that joins again raises no error about a consumer, but does not run that consumer.

        Raises:
            LogMismatchError: a consumer has rows for another log.
            PartitionsError: a consumer has rows for another number of partitions.
            TablesMissingError: the tables do not exist.
        """
        connection = self._begin(session)
        log = self._read_log(session)
        self._lead(connection)
        if self._has_joined:
            self._declare_again(connection, self._partitions, log)
        else:
            self._declare(connection, self._partitions, log)
            self._removals.note(connection, self._partitions)
        now = self._nodes.write(connection, self._worker_id, self._consumers)
        self._rebalance(connection, log, is_joining=True)
        runnable = self._runnable(connection, log)
        if self._is_leaving:
            # `leave` has run already, or it waits for the leader's lock, which this transaction holds.
            session.rollback()
            return {}
        session.commit()
        self._has_joined = True
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
        log = self._read_log(session) if is_planning or self._log is None else self._log
        if is_planning:
            with self._hooks.span("worker.rebalance") as data:
                data["is_leader"] = self._nodes.try_to_lead(connection)
                if data["is_leader"]:
                    data["nodes"], data["moved"] = self._rebalance(connection, log)
        runnable = self._runnable(connection, log)
        session.commit()
        if is_beating:
            self._last_beat = now
        if is_planning:
            self._last_plan = now
        return runnable

    def hand_over(self, session: Session) -> None:
        """Move all partitions to other nodes, but keep the node, so that its running batches can end."""
        self._is_stopping = True
        connection = self._begin(session)
        self._nodes.lead(connection)
        self._nodes.write(connection, self._worker_id, self._consumers)
        self._retire_and_rebalance(connection)
        session.commit()

    def leave(self, session: Session) -> None:
        """Remove the node, and move its partitions to other nodes."""
        self._is_stopping = True
        connection = self._begin(session)
        self._nodes.lead(connection)
        self._nodes.remove(connection, self._worker_id)
        self._retire_and_rebalance(connection)
        session.commit()

    @property
    def _consumers(self) -> list[str]:
        """The consumers of the node's row, for which it gets partitions."""
        return [] if self._is_stopping else sorted(self._partitions.keys() - self._refused)

    def _read_log(self, session: Session) -> str:
        self._log = self._log_name.read(session)
        return self._log

    def _begin(self, session: Session) -> Connection:
        connection = connection_of(session, self._tables.worker_nodes.update())
        require_transaction(connection)
        self._nodes.limit_idleness(connection, self._config.heartbeat_timeout)
        return connection

    def _lead(self, connection: Connection) -> None:
        tables = self._tables
        with translated(tables.worker_nodes, tables.consumer_assignments, tables.consumer_checkpoints):
            self._nodes.lead(connection)

    def _declare(
        self, connection: Connection, partitions: Mapping[str, int], log: str, *, is_assigned: bool = True
    ) -> None:
        starts = {name: start for name, start in self.starts.items() if name in partitions}
        found = self._assignments.declare(connection, partitions, log, starts=starts, is_assigned=is_assigned)
        self.starts.update(found)

    def _runnable(self, connection: Connection, log: str) -> dict[Partition, PartitionState]:
        return self._assignments.runnable(connection, self._worker_id, self._partitions, log)

    def _retire_and_rebalance(self, connection: Connection) -> None:
        if self._log is not None:  # otherwise the node has declared nothing
            self._assignments.retire(connection, self._partitions, self._log)
            self._rebalance(connection, self._log)

    def _rebalance(self, connection: Connection, log: str, *, is_joining: bool = False) -> tuple[int, int]:
        """Remove dead nodes and write changed assignments, as the leader. Return the counts of nodes and moves."""
        # Before nodes are removed, because the foreign key then clears their assignments.
        assignments = self._assignments.all(connection)
        current = _nodes_of(assignments)
        removed: set[UUID] = set()
        if is_joining:
            for node in self._nodes.remove_ended(connection):
                removed.add(node.worker_id)
                self._deaths.record(connection, node, current, "removed node: its process has ended")
        if self._clock() >= self._may_remove_from:
            for node in self._nodes.remove_silent(connection, self._config.heartbeat_timeout):
                removed.add(node.worker_id)
                self._deaths.record(connection, node, current, "removed node: no heartbeat")
        is_restored = not self._is_stopping and self._restore(connection, assignments, log)
        if removed or is_restored:
            current = _nodes_of(self._assignments.all(connection))
        nodes = self._nodes.all(connection)
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

    def _restore(self, connection: Connection, assignments: Mapping[Partition, Assignment], log: str) -> bool:
        """Declare consumers again whose rows were deleted, as the leader. Return True if rows may have changed."""
        before = self._consumers
        found: dict[str, set[tuple[int, str | None]]] = {name: set() for name in self._partitions}
        for partition, assignment in assignments.items():
            if partition.consumer in found:
                found[partition.consumer].add((partition.number, assignment.log))
        incomplete = {
            name: count
            for name, count in self._partitions.items()
            if found[name] != {(number, log) for number in range(count)}
        }
        self._refused &= incomplete.keys()
        for name in self._declare_again(connection, incomplete, log):
            if len(found[name]) < incomplete[name]:
                details = self._details | {"consumer": name, "partitions": incomplete[name]}
                _logger.warning("assignments were deleted; declared the partitions again", extra=details)
        if self._consumers != before:
            self._nodes.write(connection, self._worker_id, self._consumers)
        return bool(incomplete)

    def _declare_again(self, connection: Connection, partitions: Mapping[str, int], log: str) -> list[str]:
        """Declare consumers, and refuse those that an operator has removed or replaced. Return the declared ones."""
        removed = self._removals.since(connection, partitions) if partitions else ()
        declared = []
        for name, count in partitions.items():
            refusal = ""
            details: dict[str, Any] = self._details | {"consumer": name}
            if name in removed:
                refusal = "consumer was removed; restart the node to begin it again"
            else:
                try:
                    self._declare(connection, {name: count}, log)
                except PartitionsError as error:
                    refusal = "the tables have another number of partitions; restart the node"
                    details |= {"partitions": count, "existing": error.existing}
                except LogMismatchError as error:
                    refusal = "the tables have the checkpoints of another log; the consumer is not run"
                    details |= {"log": log, "existing": error.existing}
            if not refusal:
                declared.append(name)
            elif name not in self._refused:
                _logger.error(refusal, extra=details)
                self._refused.add(name)
        self._refused.difference_update(declared)
        return declared


def _nodes_of(assignments: Mapping[Partition, Assignment]) -> dict[Partition, UUID | None]:
    return {partition: assignment.worker_id for partition, assignment in assignments.items()}
