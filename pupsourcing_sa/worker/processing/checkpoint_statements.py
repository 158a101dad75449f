"""The statements about the checkpoint of one partition, which is named by the parameters that all of them have."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Double,
    Executable,
    Integer,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    exists,
    extract,
    func,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import OID, insert

from pupsourcing_sa.postgres.compiled import CompiledStatements
from pupsourcing_sa.postgres.expressions import constant, server_identity
from pupsourcing_sa.tables import WorkerTables

__all__ = ["CheckpointStatements"]

#: The system column with the oid of the table that a row is in.
_TABLE: Final = literal_column("tableoid", OID).label("table")


class CheckpointStatements:
    """The statements, built when they are first needed and once for all partitions, of which a node may have many.

    ``own_consumer`` and ``own_partition`` are parameters of all that name a row.

    Args:
        tables: where checkpoints are kept.
    """

    def __init__(self, tables: WorkerTables) -> None:
        #: Executes what every batch has, past Core, which would take as long for it as the server.
        self.compiled = CompiledStatements()
        table = self._table = tables.consumer_checkpoints
        self._own_name = bindparam("own_consumer", type_=Text()), bindparam("own_partition", type_=Integer())
        self._is_own = and_(table.c.consumer_name == self._own_name[0], table.c.partition == self._own_name[1])

    @cached_property
    def lock(self) -> Select[Any]:
        """The row, locked until the end of the transaction; none where somebody else has it.

        What is outside of the subquery is evaluated for a row that has been locked, only then.
        """
        c = self._table.c
        row = (
            select(c.last_position, c.failed_position, c.attempts, c.parked_at, c.retry_at, _TABLE)
            .where(self._is_own)
            .with_for_update(skip_locked=True)
            .subquery("locked")
        ).c
        remaining = cast(extract("epoch", row.retry_at - func.now()), Double)
        return select(
            row.last_position,
            row.failed_position,
            row.attempts,
            row.parked_at.is_not(None),
            func.greatest(remaining, 0.0, type_=Double),  # which ignores NULL
            # Of the transaction, also when it was ended and begun by SQL that SQLAlchemy does not look into.
            func.txid_current(type_=BigInteger),
            server_identity(),
            row.table,
        )

    @cached_property
    def lock_by_name(self) -> Select[Any]:
        """The same, after which the transaction calls itself by ``application_name``."""
        return self.lock.add_columns(func.set_config("application_name", bindparam("application_name"), true()))

    @cached_property
    def create(self) -> Executable:
        """The row, where there is none; gives one only if it did.

        ON CONFLICT alone would wait for whoever has moved a row that is there, and has not committed that.
        """
        absent = select(*self._own_name).where(~exists().where(self._is_own))
        created = insert(self._table).from_select(["consumer_name", "partition"], absent)
        return created.on_conflict_do_nothing().returning(self._table.c.partition)

    @cached_property
    def read(self) -> Select[Any]:
        """The position."""
        return select(self._table.c.last_position).where(self._is_own)

    @cached_property
    def update(self) -> Update:
        """The row, to be given values."""
        return self._table.update().where(self._is_own)

    @cached_property
    def move(self) -> ClauseElement:
        """To ``position``, with nothing that fails, if this transaction and this table are those that were locked.

        Gives a row if it did.
        """
        moved = self.update.where(
            func.txid_current(type_=BigInteger) == bindparam("own_transaction"),
            _TABLE.element == bindparam("own_table"),
        ).values(
            last_position=bindparam("position"),
            updated_at=func.now(),
            attempts=constant(0),
            failed_position=null(),
            error=null(),
            failed_at=null(),
            retry_at=null(),
            parked_at=null(),
        )
        return moved.returning(self._table.c.partition)

    @cached_property
    def status(self) -> Select[Any]:
        """What became of ``transaction``."""
        return select(func.txid_status(bindparam("transaction", type_=BigInteger), type_=Text))

    @cached_property
    def status_of_locker(self) -> Select[Any]:
        """The same, if it has these ``low_bits`` and was the last to lock the row.

        The system column has the 32 low bits of the id of who has locked the row, or did so last.
        """
        locker = cast(cast(literal_column("xmax"), Text), BigInteger)
        return self.status.where(self._is_own, locker == bindparam("low_bits"))
