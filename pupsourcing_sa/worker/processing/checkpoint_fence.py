"""The fence around checkpoints of other logs, and of other numbers of partitions.

A position means nothing in another log, and a partition has other aggregates if the number of partitions differs. A
node checks both when it starts. It checks them again under the lock of each checkpoint, because a node may have been
suspended while an operator changed the tables, and because a connection may have another ``search_path``.

The statement that locks a checkpoint returns the log's name from the row, and the oid of the table that the session
would read. A name in the catalog costs a query, so names are kept by oid. A name is read again before it is refused: an
operator may have adopted the log under its new name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import LogMismatchError, PartitionsError
from pupsourcing_sa.postgres.connections import connection_of
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.expressions import oid_of, server_identity
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.tables import EventTables, WorkerTables
from pupsourcing_sa.worker.processing.isolation import begin

if TYPE_CHECKING:
    from pupsourcing_sa.worker.processing.checkpoints import LockedCheckpoint

__all__ = ["CheckpointFence", "KnownLogs"]


class _Log(NamedTuple):
    """A table that a name of the log has meant: its oid, on this server and in this database."""

    server_identity: str
    table: int | None


class KnownLogs:
    """The logs that the sessions of a run have read, by their tables. Threads may share it.

    Args:
        events: the log.
        workers: the tables with the checkpoints.
    """

    def __init__(self, events: EventTables, workers: WorkerTables) -> None:
        self._events = events.events
        self._checkpoints = workers.consumer_checkpoints.update()
        self._name = LogName(events, workers)
        self._identity = select(server_identity(), oid_of(self._events))
        self._names: dict[_Log, str] = {}

    def begin(self, session: Session, isolation: str) -> None:
        """Begin a transaction with an isolation level in the log's database, if the checkpoints are in another one."""
        if self._is_elsewhere(session):
            begin(session, self._events, isolation)

    def name(self, session: Session, locked: LockedCheckpoint) -> str:
        """Return the name of the session's log. It may be an old one if it is that of the checkpoint."""
        log = _Log(locked.server_identity, locked.log_table)
        if self._is_elsewhere(session):
            with translated(self._events):
                log = _Log(*connection_of(session, self._events).execute(self._identity).one())
        name = self._names.get(log)
        if name is None or name != locked.log:
            name = self._names[log] = self.read(session)
        return name

    def read(self, session: Session) -> str:
        """Return the name of the session's log from the catalog."""
        return self._name.read(session)

    def _is_elsewhere(self, session: Session) -> bool:
        return session.get_bind(clause=self._events) is not session.get_bind(clause=self._checkpoints)


class CheckpointFence:
    """The fence of one partition.

    Args:
        logs: the names of the log.
        consumer: name of the consumer.
        partitions: number of partitions of the consumer.
    """

    def __init__(self, logs: KnownLogs, consumer: str, partitions: int) -> None:
        self._logs = logs
        self._consumer = consumer
        self._partitions = partitions

    def marks(self, session: Session) -> dict[str, Any]:
        """Return the parameters that mark a row as this log's."""
        return {"own_log": self._logs.read(session), "own_partitions": self._partitions}

    def is_marked(self, session: Session, locked: LockedCheckpoint, isolation: str) -> bool:
        """Return True if the row belongs to this log; False if it does not say so and has to be marked.

        Args:
            session: the transaction that has locked the row.
            locked: the row.
            isolation: isolation level of the session's transactions.

        Raises:
            LogMismatchError: the row belongs to another log.
            PartitionsError: the row belongs to another number of partitions.
        """
        self._logs.begin(session, isolation)
        if locked.partitions is not None and locked.partitions != self._partitions:
            raise PartitionsError(self._consumer, self._partitions, locked.partitions)
        if locked.log is not None and (name := self._logs.name(session, locked)) != locked.log:
            raise LogMismatchError(self._consumer, name, locked.log)
        return locked.log is not None and locked.partitions is not None
