"""The operations that migrations have besides Alembic's own, and what they execute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Literal

from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import OpContainer
from sqlalchemy import MetaData, Table

from pupsourcing_sa.migrations._log_statements import AlterLogSequence, RenameLogConstraint
from pupsourcing_sa.tables.guard_statements import create_guard, drop_guard, replace_guard
from pupsourcing_sa.tables.guards import current_guard, find_guard

__all__ = [
    "OPERATIONS",
    "AlterLogSequenceOp",
    "AutocommitBlockOp",
    "CreateLogGuardOp",
    "DropLogGuardOp",
    "LogOperation",
    "RenameLogConstraintOp",
    "ReplaceLogGuardOp",
]


class LogOperation(MigrateOperation, ABC):
    """An operation on one table of ours."""

    #: Its name in `alembic.op`.
    name: str

    def __init__(self, table_name: str, *, schema: str | None = None) -> None:
        self.table_name = table_name
        self.schema = schema

    @property
    def table(self) -> Table:
        return Table(self.table_name, MetaData(), schema=self.schema)

    @property
    @abstractmethod
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """What it is called with in a migration, besides the schema."""

    @abstractmethod
    def execute(self, operations: Operations) -> None:
        """What it does to the database."""

    def to_diff_tuple(self) -> tuple[Any, ...]:
        positional, named = self.arguments
        return (self.name, *positional, {"schema": self.schema, **named})


class CreateLogGuardOp(LogOperation):
    """Create a guard."""

    name = "create_log_guard"

    def __init__(self, guard: str, table_name: str, *, version: int, schema: str | None = None) -> None:
        super().__init__(table_name, schema=schema)
        self.guard = find_guard(guard, version)

    @classmethod
    def create_log_guard(
        cls, operations: Operations, guard: str, table_name: str, *, version: int, schema: str | None = None
    ) -> None:
        """Create a guard of a log.

        Takes SHARE ROW EXCLUSIVE on the log: waits for appends in open transactions, and appends wait for it; reads go
        on. Set ``lock_timeout`` where a transaction may be open for long.

        Args:
            guard: ``"append_only"`` refuses UPDATE, DELETE and TRUNCATE; ``"low_water_mark"`` makes the stable position
                hold for SQL that inserts past the store.
            table_name: the log.
            version: of the guard; a migration creates what it created when it was written.
            schema: of the log.
        """
        operations.invoke(cls(guard, table_name, version=version, schema=schema))

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.guard.name, self.table_name], {"version": self.guard.version}

    def reverse(self) -> DropLogGuardOp:
        return DropLogGuardOp(self.guard.name, self.table_name, schema=self.schema, _version=self.guard.version)

    def execute(self, operations: Operations) -> None:
        for statement in create_guard(self.guard, self.table):
            operations.execute(statement)


class ReplaceLogGuardOp(LogOperation):
    """Put a version of a guard in the place of what is there."""

    name = "replace_log_guard"

    def __init__(
        self,
        guard: str,
        table_name: str,
        *,
        version: int,
        existing_version: int | None = None,
        schema: str | None = None,
    ) -> None:
        super().__init__(table_name, schema=schema)
        self.guard = find_guard(guard, version)
        self.existing_version = existing_version

    @classmethod
    def replace_log_guard(
        cls,
        operations: Operations,
        guard: str,
        table_name: str,
        *,
        version: int,
        existing_version: int | None = None,
        schema: str | None = None,
    ) -> None:
        """Put a version of a guard in the place of what is there, whatever that is.

        Takes ACCESS EXCLUSIVE on the log for moments: waits for all who use it, and they wait for it. Set
        ``lock_timeout`` where a transaction may be open for long.

        Args:
            guard: ``"append_only"`` or ``"low_water_mark"``.
            table_name: the log.
            version: of the guard.
            existing_version: the one that is there; None for what no version of the library made, such as a function
                that was changed by hand.
            schema: of the log.
        """
        operations.invoke(cls(guard, table_name, version=version, existing_version=existing_version, schema=schema))

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        named = {"version": self.guard.version, "existing_version": self.existing_version}
        return [self.guard.name, self.table_name], named

    def reverse(self) -> ReplaceLogGuardOp:
        """The version before; what was changed by hand does not come back."""
        version = self.guard.version
        return ReplaceLogGuardOp(
            self.guard.name,
            self.table_name,
            version=version if self.existing_version is None else self.existing_version,
            existing_version=version,
            schema=self.schema,
        )

    def execute(self, operations: Operations) -> None:
        for statement in replace_guard(self.guard, self.table):
            operations.execute(statement)


class DropLogGuardOp(LogOperation):
    """Drop a guard."""

    name = "drop_log_guard"

    def __init__(self, guard: str, table_name: str, *, schema: str | None = None, _version: int | None = None) -> None:
        super().__init__(table_name, schema=schema)
        # The version is for what undoes it. All have the same names, and are dropped the same way; where it is not
        # known, such as that of a guard which was changed by hand, what comes back is the current one.
        self.guard = current_guard(guard) if _version is None else find_guard(guard, _version)

    @classmethod
    def drop_log_guard(cls, operations: Operations, guard: str, table_name: str, *, schema: str | None = None) -> None:
        """Drop a guard of a log, or what is left of it.

        Takes ACCESS EXCLUSIVE on the log for moments: waits for all who use it, and they wait for it. Set
        ``lock_timeout`` where a transaction may be open for long.

        Args:
            guard: ``"append_only"`` or ``"low_water_mark"``.
            table_name: the log.
            schema: of the log.
        """
        operations.invoke(cls(guard, table_name, schema=schema))

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.guard.name, self.table_name], {}

    def reverse(self) -> CreateLogGuardOp:
        return CreateLogGuardOp(self.guard.name, self.table_name, version=self.guard.version, schema=self.schema)

    def execute(self, operations: Operations) -> None:
        for statement in drop_guard(self.guard, self.table):
            operations.execute(statement)


class AlterLogSequenceOp(LogOperation):
    """Change what issues a log's positions."""

    name = "alter_log_sequence"

    def __init__(self, table_name: str, *, to: Literal["identity", "serial"], schema: str | None = None) -> None:
        if to not in ("identity", "serial"):
            raise ValueError(f"to must be 'identity' or 'serial', not {to!r}")
        super().__init__(table_name, schema=schema)
        self.to: Literal["identity", "serial"] = to

    @classmethod
    def alter_log_sequence(cls, operations: Operations, table_name: str, *, to: str, schema: str | None = None) -> None:
        """Have a log's positions issued by an identity (GENERATED ALWAYS), or by what BIGSERIAL makes.

        Takes ACCESS EXCLUSIVE on the log for moments, whatever its size: waits for all who use it, and they wait for
        it. Set ``lock_timeout`` where a transaction may be open for long. Positions go on where they were, and
        privileges on the sequence are granted again.

        Args:
            table_name: the log.
            to: ``"identity"``, or ``"serial"``.
            schema: of the log.
        """
        operations.invoke(cls(table_name, to=to, schema=schema))  # type: ignore[arg-type]  # it is checked there

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.table_name], {"to": self.to}

    def reverse(self) -> AlterLogSequenceOp:
        return AlterLogSequenceOp(
            self.table_name, to="serial" if self.to == "identity" else "identity", schema=self.schema
        )

    def execute(self, operations: Operations) -> None:
        operations.execute(AlterLogSequence(self.table, self.to))


class RenameLogConstraintOp(LogOperation):
    """Rename a constraint."""

    name = "rename_log_constraint"

    def __init__(self, old_name: str, new_name: str, table_name: str, *, schema: str | None = None) -> None:
        super().__init__(table_name, schema=schema)
        self.old_name = old_name
        self.new_name = new_name

    @classmethod
    def rename_log_constraint(
        cls, operations: Operations, old_name: str, new_name: str, table_name: str, *, schema: str | None = None
    ) -> None:
        """Rename a constraint, rather than have its index built anew under the other name.

        Takes ACCESS EXCLUSIVE on the table for moments, whatever its size: waits for all who use it, and they wait for
        it. Set ``lock_timeout`` where a transaction may be open for long.

        Args:
            old_name: the name that it has.
            new_name: the name that it is to have.
            table_name: the log, or the table of its heads.
            schema: of the table.
        """
        operations.invoke(cls(old_name, new_name, table_name, schema=schema))

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.old_name, self.new_name, self.table_name], {}

    def reverse(self) -> RenameLogConstraintOp:
        return RenameLogConstraintOp(self.new_name, self.old_name, self.table_name, schema=self.schema)

    def execute(self, operations: Operations) -> None:
        operations.execute(RenameLogConstraint(self.table, self.old_name, self.new_name))


class AutocommitBlockOp(OpContainer):
    """Operations outside of any transaction, as ``CREATE INDEX CONCURRENTLY`` wants them."""

    def reverse(self) -> AutocommitBlockOp:
        return AutocommitBlockOp([op.reverse() for op in reversed(self.ops)])

    def execute(self, operations: Operations) -> None:
        with operations.get_context().autocommit_block():
            for operation in self.ops:
                operations.invoke(operation)


#: What `alembic.op` gets.
OPERATIONS: Final[Sequence[type[LogOperation]]] = (
    CreateLogGuardOp,
    ReplaceLogGuardOp,
    DropLogGuardOp,
    AlterLogSequenceOp,
    RenameLogConstraintOp,
)
