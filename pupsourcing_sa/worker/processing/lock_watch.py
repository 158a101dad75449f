"""The lock watch: finds the transaction that has a checkpoint locked, and terminates it if its node is dead.

A batch takes the lock with SKIP LOCKED. If another transaction has it, the owner of the partition asks which one, every
``max_poll_interval``. A batch that gets its lock asks nothing::

    holder of the lock                                          what the owner of the partition does
    a dead node: its row in worker_nodes is gone                terminates its backend at once
    psql, a prepared transaction, a drain, a live node in a     waits; warns once per transaction when it has had the
    long batch                                                  lock for heartbeat_timeout
    unknown: several transactions share the lock, or it was     the same, without a name
    taken under a savepoint that is released

**Why dead nodes hold locks.** A node may freeze, or its host may lose power, in the middle of a batch. Its transaction
then stays open on the server and keeps the row locked until TCP gives up. The leader removes the node because its
heartbeats are missing, and its partitions get another owner, which finds the row locked::

    holder    lock, as "pupsourcing-sa <its id>" ── handler … frozen
    leader                                              removes the silent node
    owner                                                   no lock: held by a removed node ── terminate its backend
    owner                                                                                            lock …

While it holds a checkpoint, a transaction has the name of its node as ``application_name``. Only transactions with such
a name are terminated. A drain has none, because it belongs to no node. A node that resumes finds its connection closed,
and its batch has written nothing.
"""

from __future__ import annotations

import logging
from functools import cached_property, partial
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Select, case, false, func
from sqlalchemy.orm import Session

from pupsourcing_sa.postgres.checkpoint_locks import checkpoint_locks, is_of_dead_node
from pupsourcing_sa.postgres.errors import is_privilege_missing
from pupsourcing_sa.postgres.lock_holders import LockHolder, holder_of
from pupsourcing_sa.postgres.redaction import redacted
from pupsourcing_sa.worker.execution.protocol import BindHandler
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.context import PartitionContext

__all__ = ["CheckpointLock", "HolderQuery", "LockTimer", "LockWatch"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class CheckpointLock(NamedTuple):
    """The lock on a checkpoint.

    Attributes:
        transaction: virtual id of the transaction that has it; unique among running transactions.
        holder: what is known about that transaction.
        is_terminated: True if a signal to terminate was sent to its backend.
    """

    transaction: str
    holder: LockHolder
    is_terminated: bool


class HolderQuery:
    """Query for the transaction that has a checkpoint locked.

    Args:
        checkpoint: the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    # The statements are built on first use, and most processors never use them. Building takes milliseconds. If all
    # processors did it at the start, on the event loop, the node might send no heartbeat and be presumed dead.

    @cached_property
    def _locks(self) -> Select[Any]:
        locks = checkpoint_locks(self._checkpoint.tables)
        c = locks.selected_columns
        return locks.where(c.consumer_name == self._checkpoint.consumer_name, c.partition == self._checkpoint.partition)

    @cached_property
    def _find(self) -> Select[Any]:
        return self._locks.add_columns(false().label("is_terminated"))

    @cached_property
    def _find_and_terminate(self) -> Select[Any]:
        # One statement, so that the terminated process is the one that was found. CASE in the select list, because
        # PostgreSQL evaluates conditions in any order.
        terminated = func.pg_terminate_backend(self._locks.selected_columns.pid, type_=Boolean)
        is_terminated = case((is_of_dead_node(self._checkpoint.tables), terminated), else_=false())
        return self._locks.add_columns(is_terminated.label("is_terminated"))

    def find(self, session: Session, *, terminate_dead: bool) -> CheckpointLock | None:
        """Return the lock; ``None`` if the row is not locked by now, or the holder cannot be found.

        Args:
            session: a session without a transaction.
            terminate_dead: terminate the holder if its node is dead.

        Raises:
            DBAPIError: with ``terminate_dead``, this role is not allowed to terminate the backend of another role.
        """
        statement = self._find_and_terminate if terminate_dead else self._find
        row = self._checkpoint.connection(session).execute(statement).first()
        return None if row is None else CheckpointLock(row.transaction, holder_of(row), row.is_terminated)


class LockTimer:
    """Timer that decides when to warn of a lock: once per transaction. Pure: the time is a parameter.

    Args:
        seconds: time that a transaction may have the lock.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._transaction: str | None = None
        self._since = 0.0
        self._is_reported = False
        #: True if a warning was logged since the checkpoint was last free.
        self._was_reported = False

    def overdue(self, transaction: str, now: float) -> float | None:
        """Note the holder. If a warning is due, return the seconds since the holder was first seen.

        Args:
            transaction: the holder; the empty string if it is unknown.
            now: the time, in seconds.
        """
        if transaction != self._transaction:
            self._transaction, self._since, self._is_reported = transaction, now, False
        seconds = now - self._since
        if self._is_reported or seconds < self._seconds:
            return None
        self._is_reported = self._was_reported = True
        return seconds

    def has_ended(self) -> bool:
        """Note that the checkpoint is free. Return True if a warning about its lock was logged."""
        was_reported, self._was_reported = self._was_reported, False
        self._transaction = None
        return was_reported


class LockWatch:
    """Watch over the lock of one partition's checkpoint. It is used on the event loop only.

    Args:
        context: the partition.
    """

    def __init__(self, context: PartitionContext) -> None:
        self._query = HolderQuery(context.checkpoint)
        self._timer = LockTimer(context.config.heartbeat_timeout)
        self._context = context
        self._details = context.details
        self._may_terminate = True

    async def inspect(self) -> None:
        """Find the holder of a lock that a batch did not get; terminate it if its node is dead, or warn."""
        try:
            lock = await self._context.execution(
                self._context.name, partial(self._find, terminate_dead=self._may_terminate)
            )
        except Exception as error:
            if not self._may_terminate or not is_privilege_missing(error):
                raise
            self._may_terminate = False
            _logger.warning(
                "a dead node holds the checkpoint, and this role is not allowed to terminate its backend; "
                "grant it pg_signal_backend",
                exc_info=redacted(error, hide_parameters=self._context.config.hide_parameters),
                extra=self._details,
            )
            return
        if lock is not None and lock.is_terminated:
            holder = {"pid": lock.holder.pid, "application_name": lock.holder.application_name}
            _logger.warning("terminated the transaction of a dead node", extra=self._details | holder)
            self._context.hooks.event("worker.holder_ended", **self._details, pid=lock.holder.pid)
            return
        seconds = self._timer.overdue(lock.transaction if lock else "", self._context.clock())
        if seconds is not None:
            details = self._details | {"seconds": seconds} | (lock.holder.to_dict() if lock else {})
            _logger.warning("checkpoint is locked by another transaction; waiting", extra=details)
            self._context.hooks.event("worker.locked_out", **details)

    def released(self) -> None:
        """Note that a batch got the lock."""
        if self._timer.has_ended():
            _logger.info("checkpoint is no longer locked", extra=self._details)

    def _find(self, session: Session, _: BindHandler, *, terminate_dead: bool) -> CheckpointLock | None:
        return self._query.find(session, terminate_dead=terminate_dead)
