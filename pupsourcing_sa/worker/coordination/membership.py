"""Membership: how a node joins the others, what it says and hears at each tick, how it leaves.

A node is a row of ``worker_nodes``. Nodes talk through tables only::

               join                    tick                       retire              leave
    (no row) ────────▶ (alive, beats) ──────▶ (alive) … ──────▶ (knows nothing) ──────────▶ (no row)
                            ▲    │ silent for heartbeat_timeout: another node removes the row
                            └────┘ the next tick joins again

Whoever plans is the *leader* of that one transaction, by an advisory lock that ends with it: there is no lease, nothing
to renew, and no leader to lose. At a tick it is tried for; whoever joins, retires or leaves waits for it, and plans in
the same transaction, so that partitions change hands at once. The server ends a leader's transaction that stands still.

The leader removes silent nodes and writes down the plan. It judges by the clock of the database, and not before it has
been heard itself for long enough: after an outage of the database everybody was silent.

An assignment is a hint. A node that lost one may still be in a batch, and one that was taken for dead may come back to
life in the middle of one; what keeps an event from being applied twice is the lock on the checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.postgres.connections import connection_of, require_transaction
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.coordination.assignments import Assignments
from pupsourcing_sa.worker.coordination.nodes import Nodes
from pupsourcing_sa.worker.coordination.plan import plan
from pupsourcing_sa.worker.partition import Partition, PartitionState

__all__ = ["Membership"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Membership:
    """A node among others. Every method is one transaction of a fresh session, which it commits.

    Args:
        tables: the tables of the worker group.
        worker_id: the node.
        subscriptions: what it runs.
        config: the worker's settings.
        hooks: what is told of changes.
        clock: seconds, as of ``time.monotonic``.
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
        self._worker_id = worker_id
        self._partitions = {each.name: each.scope.partitions for each in subscriptions}
        self._knows = sorted(self._partitions)
        self._config = config
        self._hooks = hooks
        self._clock = clock
        self._details = {"worker": str(worker_id)}
        self._beaten_at = clock()
        self._planned_at = clock()
        self._trusted_from = clock()  # who was silent before that may not have been able to speak
        self._is_leaving = False

    @property
    def tick_interval(self) -> float:
        """Seconds between two ticks."""
        return min(self._config.heartbeat_interval, self._config.rebalance_interval)

    def distrust(self) -> None:
        """There was an outage: nobody is taken for dead before everybody had the time to speak."""
        self._trusted_from = self._clock() + self._config.heartbeat_timeout

    def abandon(self) -> None:
        """Have a `join` that is still on its way come to nothing; to be followed by `leave`."""
        self._is_leaving = True

    def declare(self, session: Session) -> None:
        """See to it that the tables have every partition, without becoming a node.

        Raises:
            PartitionsError: they have another number of them.
            TablesMissingError: there are no such tables.
        """
        connection = self._begin(session)
        self._declare(connection)
        session.commit()

    def join(self, session: Session) -> dict[Partition, PartitionState]:
        """Become a node, or become one again; gives the partitions to run, and how they stand.

        Raises:
            PartitionsError, TablesMissingError: as `declare` says.
        """
        connection = self._begin(session)
        self._declare(connection)
        self._nodes.write(connection, self._worker_id, self._knows)
        self._rebalance(connection)
        runnable = self._assignments.runnable(connection, self._worker_id)
        if self._is_leaving:  # whoever leaves waits for our lock, or has had it
            session.rollback()
            return {}
        session.commit()
        self._beaten_at = self._planned_at = self._clock()
        return runnable

    def tick(self, session: Session) -> dict[Partition, PartitionState] | None:
        """Say that the node is alive, plan if nobody else does; gives the partitions to run, as `join` does.

        Returns:
            ``None`` if the node has been taken for dead, and has to join again.
        """
        config, now = self._config, self._clock()
        since, almost = now - self._beaten_at, self.tick_interval / 2
        connection = self._begin(session)
        is_beating = since + almost >= config.heartbeat_interval
        if is_beating and not self._nodes.beat(connection, self._worker_id):
            return None
        if since > max(config.heartbeat_timeout / 2, 2 * config.heartbeat_interval):
            self.distrust()
        is_planning = now - self._planned_at + almost >= config.rebalance_interval
        if is_planning:
            with self._hooks.span("worker.rebalance") as data:
                data["is_leader"] = self._nodes.try_to_lead(connection)
                if data["is_leader"]:
                    data["nodes"], data["moved"] = self._rebalance(connection)
        runnable = self._assignments.runnable(connection, self._worker_id)
        session.commit()
        if is_beating:
            self._beaten_at = now
        if is_planning:
            self._planned_at = now
        return runnable

    def retire(self, session: Session) -> None:
        """Give the partitions to others, now; the node stays alive for what it is in the middle of."""
        self._knows = []
        connection = self._begin(session)
        self._nodes.lead(connection)
        self._nodes.write(connection, self._worker_id, self._knows)
        self._rebalance(connection)
        session.commit()

    def leave(self, session: Session) -> None:
        """Be a node no longer."""
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

    def _rebalance(self, connection: Connection) -> tuple[int, int]:
        """As the leader, remove silent nodes and write down what is to change; gives the numbers of nodes and moves."""
        if self._clock() >= self._trusted_from:
            for node in self._nodes.remove_silent(connection, self._config.heartbeat_timeout):
                _logger.warning("node was silent for too long", extra=self._details | {"node": str(node)})
                self._hooks.event("worker.node_removed", node=str(node))
        nodes = self._nodes.all(connection)
        current = self._assignments.all(connection)
        planned = plan(current, nodes)
        changes = {partition: planned[partition] for partition in current if planned[partition] != current[partition]}
        self._assignments.assign(connection, changes)
        if changes:
            _logger.info("partitions assigned", extra=self._details | {"nodes": len(nodes), "moved": len(changes)})
        return len(nodes), len(changes)
