"""Checkpoints: how far each partition of each consumer has come. Statements, and the few lines that execute them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import PupsourcingError
from pupsourcing_sa.store._connection import connection_of
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

    def lock(self, session: Session) -> int | None:
        """Lock it until the end of the transaction, creating it if need be.

        Returns:
            Its position; ``None`` when somebody else has it.
        """
        connection = self._connection(session)
        with translated(self._table):
            position: int | None = connection.scalar(self._lock)
            return connection.scalar(self._create) if position is None else position

    def read(self, session: Session) -> int:
        """Its position without locking it; 0 when it does not exist."""
        return self._connection(session).scalar(self._read) or 0

    def move(self, session: Session, position: int) -> None:
        """Move it, locked as it is; whatever failed before has not failed this time."""
        table = self._table
        healthy = dict.fromkeys(("failed_position", "error", "failed_at", "retry_at", "parked_at"))
        update = self._update.values(last_position=position, updated_at=func.now(), attempts=0, **healthy)
        if self._connection(session).execute(update).rowcount != 1:
            raise PupsourcingError(
                f"the checkpoint {self._key} in {table.key} vanished while a batch had it locked; nothing was applied"
            )

    def record_failure(
        self, session: Session, *, position: int | None, attempts: int, error: str, retry_after: float
    ) -> None:
        """Show what failed, how often, with what, and when it is tried again; the position stays where it is."""
        self._connection(session).execute(
            self._update.values(
                failed_position=position,
                attempts=attempts,
                error=error.replace("\0", "\N{SYMBOL FOR NULL}"),
                failed_at=func.now(),
                retry_at=func.now() + timedelta(seconds=retry_after),
            )
        )

    def _connection(self, session: Session) -> Connection:
        return connection_of(session, self._update)
