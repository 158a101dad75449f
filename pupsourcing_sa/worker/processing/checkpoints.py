"""Checkpoints: how far each partition of each consumer has come, and what fails there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, func, null
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import HandlerTransactionError, TablesMissingError
from pupsourcing_sa.postgres.checkpoint_locks import APPLICATION_PREFIX
from pupsourcing_sa.postgres.connections import connection_of, require_transaction
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements

__all__ = ["Checkpoint", "Failure", "Locked"]

#: Longer errors, which quote what somebody sent, are cut in the middle.
_MAX_ERROR: Final = 20_000


class Locked(NamedTuple):
    """A checkpoint as it is when a transaction has locked it.

    Attributes:
        position: up to here, included, everything is done.
        failed_position: the event that fails, or ``None``.
        attempts: how often it has failed.
        is_parked: whether the partition is to stand still.
        retry_after: the event is due in so many seconds, by the database's clock; 0 when it is, or nothing fails.
        transaction: id of the transaction that has the lock.
        origin: the server and database that it is in, as `LogPositions.server_identity`.
        table: oid of the table that it is in; names may come to mean another one.
    """

    position: int
    failed_position: int | None
    attempts: int
    is_parked: bool
    retry_after: float
    transaction: int
    origin: str
    table: int


class Failure(NamedTuple):
    """What was recorded about an event that is not passed.

    Attributes:
        attempts: how many have failed, by whatever process.
        retry_after: the next one is due in so many seconds; ``None`` if the partition is parked.
    """

    attempts: int
    retry_after: float | None


class Checkpoint:
    """The checkpoint of one partition of one consumer. Every method works in the transaction it is given.

    Args:
        tables: where checkpoints are kept.
        consumer_name: name of the consumer.
        partition: the partition, from 0.
        statements: those of the tables, which are the same for all partitions; made anew by default.
    """

    def __init__(
        self,
        tables: WorkerTables,
        consumer_name: str,
        partition: int,
        statements: CheckpointStatements | None = None,
    ) -> None:
        self.tables = tables
        self.consumer_name = consumer_name
        self.partition = partition
        self._table = tables.consumer_checkpoints
        self._statements = statements or CheckpointStatements(tables)
        self._own: dict[str, Any] = {"own_consumer": consumer_name, "own_partition": partition}

    def lock(self, session: Session, *, worker_id: UUID | None = None) -> Locked | None:
        """Lock it until the end of the transaction. One that does not exist is created, and committed, first.

        Args:
            session: whose transaction.
            worker_id: the node whose name the transaction is to bear, so that others can tell who holds it.

        Returns:
            ``None`` when somebody else has it.
        """
        found = self._try_lock(session, worker_id)
        if found is None and self._is_created(session):
            session.commit()  # nobody else can see who holds a row that is not committed
            found = self._try_lock(session, worker_id)
        return found

    def _try_lock(self, session: Session, worker_id: UUID | None) -> Locked | None:
        connection = self.connection(session)
        require_transaction(connection)
        with translated(self._table):
            statement, parameters = self._statements.lock, dict(self._own)
            if worker_id is not None:
                statement = self._statements.lock_by_name
                parameters["application_name"] = f"{APPLICATION_PREFIX}{worker_id}"
            rows = self._statements.compiled.rows(connection, statement, parameters)
        return Locked(*rows[0][: len(Locked._fields)]) if rows else None

    def _is_created(self, session: Session) -> bool:
        return self.connection(session).scalar(self._statements.create, self._own) is not None

    def read(self, session: Session) -> int:
        """Its position without locking it; 0 when it does not exist."""
        with translated(self._table):
            return self.connection(session).scalar(self._statements.read, self._own) or 0

    def move(self, session: Session, position: int, locked: Locked) -> None:
        """Move it in the transaction that locked it; whatever failed before has not failed this time.

        Raises:
            HandlerTransactionError: it is not locked by this transaction, or not called by the name that it had.
        """
        name = f"the checkpoint of partition {self.partition} of consumer {self.consumer_name!r}"
        elsewhere = "a handler of the batch changed search_path or the schema_translate_map, and did not change it back"
        given = {"position": position, "own_transaction": locked.transaction, "own_table": locked.table}
        try:
            with translated(self._table):
                connection = self.connection(session)
                is_moved = bool(self._statements.compiled.rows(connection, self._statements.move, self._own | given))
        except TablesMissingError as error:
            raise HandlerTransactionError(f"{name} is not to be found any more: {elsewhere}") from error
        if not is_moved:
            raise HandlerTransactionError(
                f"{name} is not locked by this transaction any more: a handler of the batch ended the transaction by "
                f"executing COMMIT or ROLLBACK, or somebody deleted the checkpoint, or {elsewhere}, so that the "
                "checkpoint of that name is another one"
            )

    def is_committed(self, session: Session, transaction: int, *, may_have_crashed: bool) -> bool:
        """Whether a transaction that had locked it has been committed, to be asked in another one.

        Args:
            session: whose transaction.
            transaction: the id of the one that is asked about.
            may_have_crashed: the server, since then; it issues ids again that it had not yet written down, so the row
                itself has to bear witness that it was this transaction: "no" also if somebody has locked it since.

        Raises:
            DBAPIError: the server has not come to this transaction; it is another one than that which began it.
        """
        statement, parameters = self._statements.status, {"transaction": transaction}
        if may_have_crashed:
            own = self._own | {"low_bits": transaction % 2**32}
            statement, parameters = self._statements.status_of_locker, parameters | own
        found: str | None = self.connection(session).scalar(statement, parameters)
        return found == "committed"  # NULL when it is so old that it has been forgotten

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
        """Count a failed attempt, and show with what it failed and when the next one is; the position stays.

        Args:
            session: whose transaction.
            position: the event that failed.
            error: with what.
            delay: how many seconds to wait after so many failures.
            max_attempts: after so many the partition is parked; ``None`` for never.
            worker_id: as for `lock`.

        Returns:
            ``None``, with nothing recorded, when somebody else is at work on the partition, has passed the event, or
            has parked the partition.
        """
        found = self._lock_before(session, position, worker_id)
        if found is None:
            return None
        attempts = _attempts_at(position, found) + 1
        is_parked = max_attempts is not None and attempts >= max_attempts
        return self._show(session, position, error, Failure(attempts, None if is_parked else delay(attempts)))

    def record_disturbance(
        self, session: Session, *, position: int, error: str, retry_after: float, worker_id: UUID | None = None
    ) -> Failure | None:
        """Show what befalls an event, and when it is tried again, without counting it; never parks.

        Args:
            session: whose transaction.
            position: the event.
            error: what befalls it.
            retry_after: it is tried again in so many seconds.
            worker_id: as for `lock`.

        Returns:
            ``None`` as for `record_failure`.
        """
        found = self._lock_before(session, position, worker_id)
        if found is None:
            return None
        return self._show(session, position, error, Failure(_attempts_at(position, found), retry_after))

    def park(self, session: Session, *, position: int, error: str, worker_id: UUID | None = None) -> Failure | None:
        """Park the partition, also when somebody else has passed the event; one that is parked stays as it is.

        Args:
            session: whose transaction.
            position: the event that it is parked on.
            error: why.
            worker_id: as for `lock`.

        Returns:
            ``None``, with nothing done, when somebody else is at work on the partition.
        """
        found = self.lock(session, worker_id=worker_id)
        if found is None:
            return None
        if found.is_parked:
            return Failure(found.attempts, None)
        return self._show(session, position, error, Failure(_attempts_at(position, found) + 1, None))

    def _lock_before(self, session: Session, position: int, worker_id: UUID | None) -> Locked | None:
        """Lock it, unless it has passed the position or is parked."""
        found = self.lock(session, worker_id=worker_id)
        return None if found is None or found.is_parked or found.position >= position else found

    def _show(self, session: Session, position: int, error: str, failure: Failure) -> Failure:
        """Write down what befell an event; without a next attempt the partition is parked."""
        now, seconds = func.now(), failure.retry_after
        self.connection(session).execute(
            self._statements.update.values(
                failed_position=position,
                attempts=failure.attempts,
                error=_storable(error),
                failed_at=now,
                retry_at=null() if seconds is None else now + timedelta(seconds=seconds),
                parked_at=now if seconds is None else null(),
            ),
            self._own,
        )
        return failure

    def connection(self, session: Session) -> Connection:
        """The session's connection to the checkpoint, whichever else it has."""
        return connection_of(session, self._statements.update)


def _attempts_at(position: int, found: Locked) -> int:
    """How often this event has failed; what the table has may be about another one."""
    return found.attempts if found.failed_position == position else 0


def _storable(error: str) -> str:
    """An error as PostgreSQL can store it: no NUL, no halves of surrogate pairs, and not of any length."""
    if len(error) > _MAX_ERROR:
        error = f"{error[: _MAX_ERROR // 2]}\n…\n{error[-_MAX_ERROR // 2 :]}"
    return error.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="backslashreplace").decode()
