"""Checkpoints: the position of each partition of each consumer, and the failure of its next event."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import HandlerTransactionError, TablesMissingError
from pupsourcing_sa.postgres.checkpoint_locks import APPLICATION_PREFIX
from pupsourcing_sa.postgres.connections import connection_of, require_transaction
from pupsourcing_sa.postgres.errors import is_in_failed_transaction, translated
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker.processing.checkpoint_fence import CheckpointFence
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements
from pupsourcing_sa.worker.processing.isolation import begin, require_isolation

__all__ = ["Checkpoint", "Failure", "LockedCheckpoint"]

#: Longer error texts, which may quote data, are cut in the middle.
_MAX_ERROR: Final = 20_000


class LockedCheckpoint(NamedTuple):
    """The row of a checkpoint, read by the statement that locked it.

    Attributes:
        position: every event of the scope up to this position is handled.
        failed_position: position of the failing event, or ``None``.
        attempts: number of failed attempts at that event.
        is_parked: True if the partition is parked.
        retry_after: seconds until the next attempt is due, by the database's clock; 0 if it is due, or nothing fails.
        deaths: number of nodes that died while they had the partition, since a batch moved the checkpoint.
        transaction: id of the transaction that has the lock.
        server_identity: the server and database of the row, as `LogPositions.server_identity`.
        table: oid of the row's table. The table's name may mean another table later.
        isolation: isolation level of the transaction, as the server reports it.
        log: name of the log that the row belongs to; ``None`` if the row does not say so.
        partitions: number of partitions of the consumer, according to the row; ``None`` if the row does not say so.
        log_table: oid of the log's table in this session; ``None`` if this connection does not have the log.
    """

    position: int
    failed_position: int | None
    attempts: int
    is_parked: bool
    retry_after: float
    deaths: int
    transaction: int
    server_identity: str
    table: int
    isolation: str
    log: str | None = None
    partitions: int | None = None
    log_table: int | None = None


class Failure(NamedTuple):
    """The record of an event that failed.

    Attributes:
        attempts: number of failed attempts, by all processes.
        retry_after: seconds until the next attempt; ``None`` if the partition is parked.
    """

    attempts: int
    retry_after: float | None


class Checkpoint:
    """The checkpoint of one partition of one consumer. Every method works in the transaction of the session.

    Args:
        tables: the tables with the checkpoint.
        consumer_name: name of the consumer.
        partition: number of the partition, from 0.
        statements: the statements for these tables, to share them between partitions; built by default.
        fence: refuses a row of another log or number of partitions; ``None`` to trust the row.
        start: position after which a missing row begins, if the consumer is a reaction.
    """

    def __init__(
        self,
        tables: WorkerTables,
        consumer_name: str,
        partition: int,
        statements: CheckpointStatements | None = None,
        fence: CheckpointFence | None = None,
        start: int | None = None,
    ) -> None:
        self.tables = tables
        self.consumer_name = consumer_name
        self.partition = partition
        self._table = tables.consumer_checkpoints
        self._statements = statements or CheckpointStatements(tables)
        self._fence = fence
        self._start = start
        # A session with several binds may choose one by the kind of statement. Every transaction here may write.
        self._clause = self._table.update()
        self._own: dict[str, Any] = {"own_consumer": consumer_name, "own_partition": partition}

    def lock(
        self, session: Session, *, isolation: str = "READ COMMITTED", worker_id: UUID | None = None
    ) -> LockedCheckpoint | None:
        """Lock the row until the end of the transaction. A missing row is created and committed first.

        Args:
            session: a session without a transaction.
            isolation: isolation level of the transaction.
            worker_id: the node, to name the transaction after it; other nodes then know who has the lock. ``None`` for
                a drain. A node creates a row only if the partition has an assignment.

        Returns:
            ``None`` if another transaction has the row locked, or if a node finds neither a row nor an assignment.

        Raises:
            LogMismatchError: the row belongs to another log.
            PartitionsError: the row belongs to another number of partitions.
            TransactionRequiredError: the transaction has a lower isolation level.
        """
        locked = self._try_lock(session, isolation, worker_id)
        if locked is None and self._is_created(session, is_assigned=worker_id is not None):
            # Commit, because other nodes cannot find the holder of an uncommitted row.
            session.commit()
            locked = self._try_lock(session, isolation, worker_id)
        fence = self._fence
        if locked is not None and fence is not None and not fence.is_marked(session, locked, isolation):
            self.connection(session).execute(self._statements.adopt, self._own | fence.marks(session))
        return locked

    def _try_lock(self, session: Session, isolation: str, worker_id: UUID | None) -> LockedCheckpoint | None:
        connection = begin(session, self._clause, isolation)
        require_transaction(connection)
        with translated(self._table):
            statement, parameters = self._statements.lock, dict(self._own)
            if worker_id is not None:
                statement = self._statements.lock_by_name
                parameters["application_name"] = f"{APPLICATION_PREFIX}{worker_id}"
            rows = self._statements.compiled.rows(connection, statement, parameters)
        if not rows:
            return None
        locked = LockedCheckpoint(*rows[0][: len(LockedCheckpoint._fields)])
        require_isolation(isolation, locked.isolation)
        return locked._replace(retry_after=float(locked.retry_after))  # the driver returns a Decimal

    def _is_created(self, session: Session, *, is_assigned: bool) -> bool:
        statement = self._statements.create_assigned if is_assigned else self._statements.create
        marks = {"own_log": None, "own_partitions": None} if self._fence is None else self._fence.marks(session)
        return self.connection(session).scalar(statement, self._own | marks | {"own_start": self._start}) is not None

    def read(self, session: Session) -> int:
        """Return the position without locking the row; 0 if there is no row."""
        with translated(self._table):
            return self.connection(session).scalar(self._statements.read, self._own) or 0

    def failed_before(self, session: Session, time: datetime) -> bool:
        """Return True if the last failure of the locked row is older than a time of the database's clock."""
        return bool(self.connection(session).scalar(self._statements.failed_before, self._own | {"time": time}))

    def move(self, session: Session, position: int, locked: LockedCheckpoint, *, deaths: int = 0) -> None:
        """Move the checkpoint in the transaction that locked it, and clear the recorded failure.

        Args:
            session: the session of that transaction.
            position: the new position.
            locked: the row, as it was locked.
            deaths: the new number of deaths; not 0 in careful mode.

        Raises:
            HandlerTransactionError: this transaction no longer holds the lock, or is aborted, or the table's name means
                another table.
        """
        name = f"the checkpoint of partition {self.partition} of consumer {self.consumer_name!r}"
        parameters = self._own | {
            "position": position,
            "deaths": deaths,
            "own_transaction": locked.transaction,
            "own_table": locked.table,
        }
        try:
            with translated(self._table):
                is_moved = bool(
                    self._statements.compiled.rows(self.connection(session), self._statements.move, parameters)
                )
        except DBAPIError as error:
            # A handler that executes SQL with the driver itself can hide an error from SQLAlchemy.
            if not is_in_failed_transaction(error):
                raise
            raise HandlerTransactionError(
                f"{name} cannot be moved: a handler caught a database error and continued, but PostgreSQL has aborted "
                "the transaction. Do not catch the error; for a part that may fail on its own, use "
                "session.begin_nested()"
            ) from error
        except TablesMissingError as error:
            raise HandlerTransactionError(
                f"{name} was not found when the batch ended: a handler changed search_path or the "
                "schema_translate_map. Change it back before the handler returns"
            ) from error
        if not is_moved:
            raise HandlerTransactionError(
                f"{name} is no longer locked by this transaction. A handler ended the transaction by executing "
                "COMMIT or ROLLBACK, or changed search_path or the schema_translate_map so that the name means another "
                "table, or the row was deleted. Remove the statement, or change the setting back before the handler "
                "returns"
            )

    def is_committed(self, session: Session, locked: LockedCheckpoint) -> bool:
        """Return True if the transaction that had locked the row was committed. Ask in another transaction.

        Return False on another server, or on one that was restarted since: it may have issued the id again.
        """
        parameters = {"transaction": locked.transaction, "own_server": locked.server_identity}
        found: str | None = self.connection(session).scalar(self._statements.status, parameters)
        return found == "committed"  # NULL if the server has forgotten the transaction

    def record_failure(
        self,
        session: Session,
        *,
        position: int,
        error: str,
        delay: Callable[[int], float],
        max_attempts: int | None = None,
        worker_id: UUID | None = None,
    ) -> Failure | None:
        """Count a failed attempt at an event and set the time of the next one, or park the partition.

        Args:
            session: the session.
            position: position of the event.
            error: the error, as text.
            delay: returns the seconds to wait after a number of failed attempts.
            max_attempts: number of failed attempts after which the partition is parked; ``None`` for never.
            worker_id: as for `lock`.

        Returns:
            ``None`` if nothing is recorded: another transaction has the lock, the event is handled, or the partition is
            parked already.
        """
        locked = self._lock_before(session, position, worker_id)
        if locked is None:
            return None
        attempts = _attempts_at(position, locked) + 1
        is_parked = max_attempts is not None and attempts >= max_attempts
        return self._record(session, position, error, Failure(attempts, None if is_parked else delay(attempts)))

    def record_interruption(
        self, session: Session, *, position: int, error: str, retry_after: float, worker_id: UUID | None = None
    ) -> Failure | None:
        """Record the error of an event and the time of the next attempt, without counting it. Never parks.

        Args:
            session: the session.
            position: position of the event.
            error: the error, as text.
            retry_after: seconds until the next attempt.
            worker_id: as for `lock`.

        Returns:
            ``None`` as for `record_failure`.
        """
        locked = self._lock_before(session, position, worker_id)
        if locked is None:
            return None
        return self._record(session, position, error, Failure(_attempts_at(position, locked), retry_after))

    def park(self, session: Session, *, position: int, error: str, worker_id: UUID | None = None) -> Failure | None:
        """Park the partition, even if the event is handled by now. A partition that is parked stays unchanged.

        Args:
            session: the session.
            position: position of the event to park on.
            error: the reason, as text.
            worker_id: as for `lock`.

        Returns:
            ``None`` if another transaction has the lock, and nothing was done.
        """
        locked = self.lock(session, worker_id=worker_id)
        if locked is None:
            return None
        if locked.is_parked:
            return Failure(locked.attempts, None)
        return self._record(session, position, error, Failure(_attempts_at(position, locked) + 1, None))

    def connection(self, session: Session) -> Connection:
        """Return the session's connection to the checkpoint. A session may have others."""
        return connection_of(session, self._clause)

    def is_beside(self, session: Session, table: Table) -> bool:
        """Return True if the session has one connection for the checkpoint and this table."""
        return session.get_bind(clause=self._clause) is session.get_bind(clause=table)

    def _lock_before(self, session: Session, position: int, worker_id: UUID | None) -> LockedCheckpoint | None:
        """Lock the row; return ``None`` if it cannot be locked, has passed the position, or is parked."""
        locked = self.lock(session, worker_id=worker_id)
        return None if locked is None or locked.is_parked or locked.position >= position else locked

    def _record(self, session: Session, position: int, error: str, failure: Failure) -> Failure:
        """Write a failure to the row; without a next attempt the partition is parked."""
        statement = self._statements.park
        parameters = self._own | {
            "position": position,
            "failed_attempts": failure.attempts,
            "error_text": _storable(error),
        }
        if failure.retry_after is not None:
            statement = self._statements.record_failure
            parameters["delay"] = timedelta(seconds=failure.retry_after)
        self.connection(session).execute(statement, parameters)
        return failure


def _attempts_at(position: int, locked: LockedCheckpoint) -> int:
    """Return the number of failed attempts at an event; the row may be about another event."""
    return locked.attempts if locked.failed_position == position else 0


def _storable(error: str) -> str:
    """Return an error text that PostgreSQL can store: without NUL and lone surrogates, and of limited length."""
    if len(error) > _MAX_ERROR:
        error = f"{error[: _MAX_ERROR // 2]}\n…\n{error[-_MAX_ERROR // 2 :]}"
    return error.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="backslashreplace").decode()
