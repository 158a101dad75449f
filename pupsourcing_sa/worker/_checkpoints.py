"""Checkpoints: how far each partition of each consumer has come. Statements, and the few lines that execute them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import BigInteger, Connection, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import HandlerTransactionError
from pupsourcing_sa.store._connection import connection_of, require_transaction
from pupsourcing_sa.store._errors import translated
from pupsourcing_sa.tables import WorkerTables

__all__ = ["Checkpoint"]


class Checkpoint:
    """The checkpoint of one partition of one consumer. Every method works in the transaction it is given.

    Args:
        tables: where checkpoints are kept.
        consumer_name: name of the consumer.
        partition: the partition, from 0.
    """

    def __init__(self, tables: WorkerTables, consumer_name: str, partition: int) -> None:
        table = self._table = tables.consumer_checkpoints
        self._key = {"consumer_name": consumer_name, "partition": partition}
        is_ours = (table.c.consumer_name == consumer_name) & (table.c.partition == partition)
        self._lock = select(table.c.last_position).where(is_ours).with_for_update(skip_locked=True)
        self._read = select(table.c.last_position).where(is_ours)
        self._create = insert(table).values(self._key).on_conflict_do_nothing().returning(table.c.last_position)
        self._update = table.update().where(is_ours)
        # Of the transaction, also when it was ended and begun by SQL that SQLAlchemy does not look into.
        self._transaction = select(func.txid_current(type_=BigInteger))

    def lock(self, session: Session) -> tuple[int, int] | None:
        """Lock it until the end of the transaction, creating it if need be.

        Returns:
            Its position, and the id of the transaction that has locked it; ``None`` when somebody else has it.
        """
        connection = self._connection(session)
        require_transaction(connection)
        with translated(self._table):
            position: int | None = connection.scalar(self._lock)
            if position is None:
                position = connection.scalar(self._create)
        return None if position is None else (position, connection.scalars(self._transaction).one())

    def read(self, session: Session) -> int:
        """Its position without locking it; 0 when it does not exist."""
        with translated(self._table):
            return self._connection(session).scalar(self._read) or 0

    def move(self, session: Session, position: int, transaction: int) -> None:
        """Move it in the transaction that locked it; whatever failed before has not failed this time."""
        healthy = dict.fromkeys(("failed_position", "error", "failed_at", "retry_at", "parked_at"))
        update = self._update.where(func.txid_current(type_=BigInteger) == transaction).values(
            last_position=position, updated_at=func.now(), attempts=0, **healthy
        )
        if self._connection(session).execute(update).rowcount != 1:
            raise HandlerTransactionError(
                f"the checkpoint {self._key} is not locked by this transaction any more: a handler of the batch ended "
                "the transaction, perhaps by executing COMMIT, or somebody deleted the checkpoint"
            )

    def record_failure(self, session: Session, *, position: int, error: str, retry_after: float) -> None:
        """Show what failed, how often, with what, and when it is tried again; the position stays where it is.

        The batch that would have created the checkpoint may be the one that failed. A checkpoint that has passed the
        event in the meantime, by another process, is left alone.
        """
        table = self._table
        failure = {
            "failed_position": position,
            "error": error.replace("\0", "\N{SYMBOL FOR NULL}"),
            "failed_at": func.now(),
            "retry_at": func.now() + timedelta(seconds=retry_after),
        }
        self._connection(session).execute(
            insert(table)
            .values(**self._key, **failure, attempts=1)
            .on_conflict_do_update(
                index_elements=[table.c.consumer_name, table.c.partition],
                set_=failure | {"attempts": table.c.attempts + 1},
                where=table.c.last_position < position,
            )
        )

    def _connection(self, session: Session) -> Connection:
        return connection_of(session, self._update)
