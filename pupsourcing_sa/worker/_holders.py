"""Holders: who has locked a checkpoint that others want, and what to do about it.

The owner of a partition takes the lock for each batch, and skips it where somebody else has it. Only then does it ask
who that is, twice a second with the default settings; a batch that gets its lock asks nothing::

    dead       a node that is not in worker_nodes any more       its backend is ended, at once
    anybody    psql, a prepared transaction, a drain, a node     has had it for heartbeat_timeout: told, once for
               that is alive, in a long batch                    each transaction; waited for, however long it takes

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

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Boolean, Row, case, false, func
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pupsourcing_sa.store._connection import connection_of
from pupsourcing_sa.worker._checkpoints import Checkpoint
from pupsourcing_sa.worker._holder_statements import HolderStatements, is_dead

__all__ = ["Held", "Holders", "LockHolder", "LockWatch", "holder_of", "is_privilege_missing"]

_INSUFFICIENT_PRIVILEGE: Final = "42501"


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A transaction that has locked a checkpoint.

    Attributes:
        pid: process id of its backend, for ``pg_terminate_backend``; ``None`` for a prepared transaction.
        gid: id of a prepared transaction, for ``ROLLBACK PREPARED``; ``None`` for any other.
        user: the role that it runs as.
        application_name: as its connection says; a node's is ``pupsourcing-sa`` and its id. ``None`` if it is prepared.
        state: ``active``, ``idle in transaction``, ``prepared`` and so on; ``None``, like what follows, where this
            session may not see it, which takes the role ``pg_read_all_stats``.
        age: since the transaction began, or was prepared.
        query: its last statement.
    """

    pid: int | None
    gid: str | None
    user: str | None
    application_name: str | None
    state: str | None
    age: timedelta | None
    query: str | None

    def shown(self) -> dict[str, Any]:
        """As logs want it: the age in seconds."""
        return asdict(self) | {"age": None if self.age is None else self.age.total_seconds()}


def holder_of(row: Row[Any]) -> LockHolder:
    """The holder in a row of `HolderStatements`."""
    return LockHolder(row.pid, row.gid, row.user, row.application_name, row.state, row.age, row.query)


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
        self._checkpoints = checkpoint.tables.consumer_checkpoints
        statements = HolderStatements(checkpoint.tables)
        c = statements.held.c
        holders = statements.holders(c.consumer_name == checkpoint.consumer_name, c.partition == checkpoint.partition)
        self._look = holders.add_columns(false().label("is_ended"))
        # In the statement that looks, so that the process is the one that has been looked at; and by CASE among its
        # results, because PostgreSQL evaluates conditions in any order.
        ended = func.pg_terminate_backend(holders.selected_columns.pid, type_=Boolean)
        self._end = holders.add_columns(case((is_dead(checkpoint.tables), ended), else_=false()).label("is_ended"))

    def look(self, session: Session, *, is_ending: bool) -> list[Held]:
        """Who has the checkpoint, the oldest transaction first; one, or nobody any more, as a rule.

        Args:
            session: a fresh session.
            is_ending: whether those who are dead are to be ended.

        Raises:
            DBAPIError: `is_privilege_missing` says whether this role may not end what another role has begun.
        """
        statement = self._end if is_ending else self._look
        rows = connection_of(session, self._checkpoints.update()).execute(statement)
        # Once each: a transaction that has locked a row under several savepoints is found several times.
        return list({row.transaction: Held(row.transaction, holder_of(row), row.is_ended) for row in rows}.values())


class LockWatch:
    """Follows who has a checkpoint locked, and tells when to complain: once of each transaction.

    Args:
        patience: for how long a transaction may have it, in seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: dict[str, float] = {}
        self._told: set[str] = set()
        self._has_complained = False

    def overdue(self, held: Iterable[Held], now: float) -> list[tuple[LockHolder, float]]:
        """Take notice of who has it; those to complain of, with the seconds since they were seen first.

        Args:
            held: all that was found.
            now: the time, in seconds from anywhere.
        """
        holders = {each.transaction: each.holder for each in held}
        self._since = {each: self._since.get(each, now) for each in holders}
        due = [each for each, since in self._since.items() if now - since >= self._patience and each not in self._told]
        self._told = (self._told & holders.keys()) | set(due)  # ids come again after a restart of the server
        self._has_complained |= bool(due)
        return [(holders[each], now - self._since[each]) for each in due]

    def has_ended(self) -> bool:
        """Take notice that nobody else has it; whether what was complained of has come to an end by that."""
        has_complained, self._has_complained = self._has_complained, False
        self._since.clear()
        self._told.clear()
        return has_complained


def is_privilege_missing(error: Exception) -> bool:
    """Whether the role may not do what was asked."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _INSUFFICIENT_PRIVILEGE
