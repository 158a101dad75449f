"""Statements about the checkpoint of one partition. All of them find its row by the primary key.

The parameters ``own_consumer`` and ``own_partition`` name the row.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Executable,
    Integer,
    Interval,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import OID, insert

from pupsourcing_sa.postgres.compiled import CompiledStatements
from pupsourcing_sa.postgres.expressions import constant, oid_if_exists, seconds, server_identity
from pupsourcing_sa.tables import WorkerTables

__all__ = ["CheckpointStatements"]

#: System column: oid of the table of a row.
_TABLE: Final = literal_column("tableoid", OID).label("table")


class CheckpointStatements:
    """The statements, built when they are first used, and once for all partitions of a node.

    Args:
        tables: the tables with the checkpoints.
        log: the log, whose table `lock` returns; ``None`` to return NULL.
    """

    def __init__(self, tables: WorkerTables, log: Table | None = None) -> None:
        #: Executes the statements of every batch without Core, which would take as long as the server.
        self.compiled = CompiledStatements()
        table = self._table = tables.consumer_checkpoints
        self._assignments = tables.consumer_assignments
        self._log_table = null() if log is None else oid_if_exists(log)
        self._marks = bindparam("own_log", type_=Text()), bindparam("own_partitions", type_=Integer())
        self._own_name = bindparam("own_consumer", type_=Text()), bindparam("own_partition", type_=Integer())
        self._is_own = and_(table.c.consumer_name == self._own_name[0], table.c.partition == self._own_name[1])
        self._update = table.update().where(self._is_own)

    @cached_property
    def lock(self) -> Select[Any]:
        """Lock the row until the end of the transaction. Returns no row if another transaction has it locked.

        Expressions outside of the subquery are evaluated only for a row that was locked.
        """
        c = self._table.c
        row = (
            select(
                c.last_position,
                c.failed_position,
                c.attempts,
                c.deaths,
                c.parked_at,
                c.retry_at,
                c.log,
                c.partitions,
                _TABLE,
            )
            .where(self._is_own)
            .with_for_update(skip_locked=True)
            .subquery("locked")
        ).c
        return select(
            row.last_position,
            row.failed_position,
            row.attempts,
            row.parked_at.is_not(None),
            func.greatest(seconds(row.retry_at - func.now()), constant(0)),  # GREATEST ignores NULL
            row.deaths,
            # Identifies the transaction, even when a handler ends it and begins another one by SQL.
            func.txid_current(type_=BigInteger),
            server_identity(),
            row.table,
            func.current_setting("transaction_isolation"),
            row.log,
            row.partitions,
            self._log_table,
        )

    @cached_property
    def lock_by_name(self) -> Select[Any]:
        """Lock the row as `lock` does, and name the transaction ``application_name``, but only if it got the lock."""
        return self.lock.add_columns(func.set_config("application_name", bindparam("application_name"), true()))

    @cached_property
    def create_assigned(self) -> Executable:
        """Insert the row of a node's partition if it is missing; returns a row if it was inserted.

        A partition that has no assignment is not supposed to run: an operator may have removed the consumer while this
        process was suspended. The lock on the assignment makes a removal that is in progress win.
        """
        a = self._assignments.c
        is_own = and_(a.consumer_name == self._own_name[0], a.partition == self._own_name[1])
        return self._create(
            self._absent()
            .select_from(self._assignments)
            .where(is_own, or_(a.log.is_(None), a.log == self._marks[0]))
            .with_for_update(of=self._assignments, key_share=True, read=True)
        )

    @cached_property
    def create(self) -> Executable:
        """Insert the row of a drain's partition, which needs no assignment; as `create_assigned` otherwise."""
        return self._create(self._absent())

    def _absent(self) -> Any:
        """Select the row, unless it exists, or there are rows of another number of partitions."""
        c = self._table.c
        is_in_the_way = or_(c.partition == self._own_name[1], c.partitions != self._marks[1])
        start = bindparam("own_start", type_=BigInteger())
        return select(*self._own_name, *self._marks, start, func.coalesce(start, constant(0))).where(
            ~exists().where(c.consumer_name == self._own_name[0], is_in_the_way)
        )

    def _create(self, absent: Any) -> Executable:
        # ON CONFLICT alone would wait for a transaction that has moved an existing row and is not finished.
        c = self._table.c
        columns = ["consumer_name", "partition", "log", "partitions", "start_position", "last_position"]
        created = insert(self._table).from_select(columns, absent)
        return created.on_conflict_do_nothing().returning(c.partition)

    @cached_property
    def adopt(self) -> Executable:
        """Write the log and the number of partitions into a row that lacks one of them."""
        c = self._table.c
        return self._update.values(
            log=func.coalesce(c.log, self._marks[0]),
            partitions=func.coalesce(c.partitions, self._marks[1]),
        )

    @cached_property
    def read(self) -> Select[Any]:
        """Read the position."""
        return select(self._table.c.last_position).where(self._is_own)

    @cached_property
    def failed_before(self) -> Select[Any]:
        """Return True if the last failure is older than ``time``."""
        return select(self._table.c.failed_at < bindparam("time")).where(self._is_own)

    @cached_property
    def move(self) -> ClauseElement:
        """Move the checkpoint to ``position``, clear the failure and set ``deaths``; returns a row if it did.

        It does so only in the transaction and the table in which the row was locked.
        """
        moved = self._update.where(
            func.txid_current(type_=BigInteger) == bindparam("own_transaction"),
            _TABLE.element == bindparam("own_table"),
        ).values(
            last_position=bindparam("position"),
            updated_at=func.now(),
            attempts=constant(0),
            deaths=bindparam("deaths"),
            failed_position=null(),
            error=null(),
            failed_at=null(),
            retry_at=null(),
            parked_at=null(),
        )
        return moved.returning(self._table.c.partition)

    @cached_property
    def record_failure(self) -> Executable:
        """Record the failure of the event at ``position``; its next attempt is due after ``delay``."""
        return self._update.values(
            **self._failure, retry_at=func.now() + bindparam("delay", type_=Interval()), parked_at=null()
        )

    @cached_property
    def park(self) -> Executable:
        """Record the failure of the event at ``position``, and park the partition."""
        return self._update.values(**self._failure, retry_at=null(), parked_at=func.now())

    @property
    def _failure(self) -> dict[str, Any]:
        return {
            "failed_position": bindparam("position"),
            "attempts": bindparam("failed_attempts"),
            "error": bindparam("error_text"),
            "failed_at": func.now(),
        }

    @cached_property
    def status(self) -> Select[Any]:
        """Return the state of ``transaction``: committed, aborted, in progress, or NULL if it is forgotten.

        Returns NULL on another server than ``own_server``. A server that was restarted after a crash may have issued
        the id again, to a transaction that did commit.
        """
        status = func.txid_status(bindparam("transaction", type_=BigInteger), type_=Text)
        # CASE, because PostgreSQL evaluates conditions in any order, and an id that was never issued is an error.
        is_own_server = server_identity() == bindparam("own_server", type_=Text())
        return select(case((is_own_server, status)))
