"""Holders: who has locked a checkpoint that others want, and what to do about it.

The owner of a partition takes the lock for each batch, and skips it where somebody else has it. Only then does it ask
who that is, twice a second with the default settings; a batch that gets its lock asks nothing::

    dead       a node that is not in worker_nodes any more       its backend is ended, at once
    anybody    psql, a prepared transaction, a drain, a node     has had it for heartbeat_timeout: told, once for
               that is alive, in a long batch                    each transaction; waited for, however long it takes
    unknown    somebody who shares the lock, or has it under     the same, without a name
               a savepoint that was released

A node that is stopped, or whose host has lost its power, in the middle of a batch leaves its transaction open on the
server, and the row locked, until TCP gives up. The others remove the node for its silence, its partitions go to them,
and all they get is a row that is locked::

    holder    lock, as "pupsourcing-sa <its id>" ── handler … stopped
    leader                                             removes the silent node
    owner                                                  no lock: who has it? ── a node that is gone: end its backend
    owner                                                                                                       lock …

A transaction carries its node's name (``application_name``) for as long as it holds a checkpoint. Whoever has no name
of that form is none of our business to end, such as a drain, which belongs to no node; neither is a node that is alive,
which may take its time. A node that comes back to life finds its connection closed and has applied nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Select, case, false, func
from sqlalchemy.orm import Session

from pupsourcing_sa.postgres.checkpoint_locks import checkpoint_locks, is_of_dead_node
from pupsourcing_sa.postgres.connections import connection_of
from pupsourcing_sa.postgres.lock_holders import LockHolder, holder_of
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint

__all__ = ["Held", "Holders", "LockWatch"]


class Held(NamedTuple):
    """A lock on a checkpoint.

    Attributes:
        transaction: whose it is, as no other transaction is called at the same time.
        holder: what is known of it.
        is_ended: whether it was told to end.
    """

    transaction: str
    holder: LockHolder
    is_ended: bool


class Holders:
    """Looks who has locked a checkpoint, and ends the transactions of dead nodes.

    Args:
        checkpoint: the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._table = checkpoint.tables.consumer_checkpoints

    # Built when they are first needed, which most never are: it takes milliseconds, and of all processors that a node
    # begins at once, on its event loop, so many that it might be taken for dead.

    @cached_property
    def _held(self) -> Select[Any]:
        held = checkpoint_locks(self._checkpoint.tables)
        c = held.selected_columns
        return held.where(c.consumer_name == self._checkpoint.consumer_name, c.partition == self._checkpoint.partition)

    @cached_property
    def _look(self) -> Select[Any]:
        return self._held.add_columns(false().label("is_ended"))

    @cached_property
    def _end(self) -> Select[Any]:
        # In the statement that looks, so that the process is the one that has been looked at; and by CASE among its
        # results, because PostgreSQL evaluates conditions in any order.
        ended = func.pg_terminate_backend(self._held.selected_columns.pid, type_=Boolean)
        is_ended = case((is_of_dead_node(self._checkpoint.tables), ended), else_=false()).label("is_ended")
        return self._held.add_columns(is_ended)

    def look(self, session: Session, *, is_ending: bool) -> Held | None:
        """Who has the checkpoint; ``None`` when nobody has it any more, or it cannot be told who.

        Args:
            session: a fresh session.
            is_ending: whether it is to be ended if it is dead.

        Raises:
            DBAPIError: among others, because this role may not end what another role has begun.
        """
        row = connection_of(session, self._table.update()).execute(self._end if is_ending else self._look).first()
        return None if row is None else Held(row.transaction, holder_of(row), row.is_ended)


class LockWatch:
    """Follows who has a checkpoint locked, and tells when to complain: once of each transaction.

    Args:
        patience: for how long a transaction may have it, in seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._transaction: str | None = None
        self._since = 0.0
        self._is_told = False
        self._has_complained = False

    def overdue(self, transaction: str, now: float) -> float | None:
        """Take notice of who has it; if it is time to complain, the seconds since it was seen first.

        Args:
            transaction: who has it; the empty string for those who cannot be told.
            now: the time, in seconds from anywhere.
        """
        if transaction != self._transaction:
            self._transaction, self._since, self._is_told = transaction, now, False
        seconds = now - self._since
        if self._is_told or seconds < self._patience:
            return None
        self._is_told = self._has_complained = True
        return seconds

    def has_ended(self) -> bool:
        """Take notice that nobody else has it; whether what was complained of has come to an end by that."""
        has_complained, self._has_complained = self._has_complained, False
        self._transaction = None
        return has_complained
