"""Operations for migrations, in addition to Alembic's own."""

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
    """Base of the operations on one table of this library."""

    #: Name of the method in `alembic.op`.
    name: str

    def __init__(self, table_name: str, *, schema: str | None = None) -> None:
        self.table_name = table_name
        self.schema = schema

    @property
    def table(self) -> Table:
        """The table's name and schema, without columns."""
        return Table(self.table_name, MetaData(), schema=self.schema)

    @property
    @abstractmethod
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Positional and named arguments of the call in a migration, without the schema."""

    @abstractmethod
    def execute(self, operations: Operations) -> None:
        """Execute the statements of the operation."""

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the operation as a tuple, for ``alembic check`` and ``compare_metadata()``."""
        positional, named = self.arguments
        return (self.name, *positional, {"schema": self.schema, **named})


class CreateLogGuardOp(LogOperation):
    """The operation that creates a guard."""

    name = "create_log_guard"

    def __init__(self, guard: str, table_name: str, *, version: int, schema: str | None = None) -> None:
        super().__init__(table_name, schema=schema)
        self.guard = find_guard(guard, version)

    @classmethod
    def create_log_guard(
        cls, operations: Operations, guard: str, table_name: str, *, version: int, schema: str | None = None
    ) -> None:
        """Create a guard of a log.

        Locks the log in SHARE ROW EXCLUSIVE mode. It waits for open transactions that have appended, and appends wait
        for it; reads do not. Set ``lock_timeout`` if a transaction may stay open for long.

        Args:
            guard: ``"append_only"`` refuses UPDATE, DELETE and TRUNCATE. ``"low_water_mark"`` makes the stable position
                correct for SQL that inserts without the store.
            table_name: name of the log.
            version: version of the guard, so that the migration always creates the same one.
            schema: schema of the log.
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
    """The operation that replaces an existing guard with another version."""

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
        """Replace an existing guard, even an incomplete or changed one, with another version.

        Locks the log in ACCESS EXCLUSIVE mode for a moment. It waits for every open transaction that uses the log, and
        all others wait for it. Set ``lock_timeout`` if a transaction may stay open for long.

        Args:
            guard: ``"append_only"`` or ``"low_water_mark"``.
            table_name: name of the log.
            version: version of the guard.
            existing_version: version of the existing guard; ``None`` if it matches none, such as after a change by
                hand.
            schema: schema of the log.
        """
        operations.invoke(cls(guard, table_name, version=version, existing_version=existing_version, schema=schema))

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        named = {"version": self.guard.version, "existing_version": self.existing_version}
        return [self.guard.name, self.table_name], named

    def reverse(self) -> ReplaceLogGuardOp:
        """Return the operation that restores the former version. A change by hand is not restored."""
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
    """The operation that drops a guard."""

    name = "drop_log_guard"

    def __init__(self, guard: str, table_name: str, *, schema: str | None = None, _version: int | None = None) -> None:
        super().__init__(table_name, schema=schema)
        # Only reverse() needs the version: all versions have the same names and are dropped in the same way. If it is
        # unknown, such as after a change by hand, reverse() creates the current version.
        self.guard = current_guard(guard) if _version is None else find_guard(guard, _version)

    @classmethod
    def drop_log_guard(cls, operations: Operations, guard: str, table_name: str, *, schema: str | None = None) -> None:
        """Drop a guard of a log, even an incomplete one.

        Locks the log in ACCESS EXCLUSIVE mode for a moment. It waits for every open transaction that uses the log, and
        all others wait for it. Set ``lock_timeout`` if a transaction may stay open for long.

        Args:
            guard: ``"append_only"`` or ``"low_water_mark"``.
            table_name: name of the log.
            schema: schema of the log.
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
    """The operation that changes the kind of a log's sequence."""

    name = "alter_log_sequence"

    def __init__(self, table_name: str, *, to: Literal["identity", "serial"], schema: str | None = None) -> None:
        if to not in ("identity", "serial"):
            raise ValueError(f"to must be 'identity' or 'serial', not {to!r}")
        super().__init__(table_name, schema=schema)
        self.to: Literal["identity", "serial"] = to

    @classmethod
    def alter_log_sequence(
        cls, operations: Operations, table_name: str, *, to: Literal["identity", "serial"], schema: str | None = None
    ) -> None:
        """Make an identity (GENERATED ALWAYS) or a BIGSERIAL sequence issue the log's positions.

        Positions continue at the same value, and privileges on the sequence are granted again.

        Locks the log in ACCESS EXCLUSIVE mode for a moment, however large it is. It waits for every open transaction
        that uses the log, and all others wait for it. Set ``lock_timeout`` if a transaction may stay open for long.

        Args:
            table_name: name of the log.
            to: ``"identity"`` or ``"serial"``.
            schema: schema of the log.
        """
        operations.invoke(cls(table_name, to=to, schema=schema))

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
    """The operation that renames a constraint."""

    name = "rename_log_constraint"

    def __init__(self, old_name: str, new_name: str, table_name: str, *, schema: str | None = None) -> None:
        super().__init__(table_name, schema=schema)
        self.old_name = old_name
        self.new_name = new_name

    @classmethod
    def rename_log_constraint(
        cls, operations: Operations, old_name: str, new_name: str, table_name: str, *, schema: str | None = None
    ) -> None:
        """Rename a constraint and its index, without building the index again.

        Locks the table in ACCESS EXCLUSIVE mode for a moment, however large it is. It waits for every open transaction
        that uses the table, and all others wait for it. Set ``lock_timeout`` if a transaction may stay open for long.

        Args:
            old_name: existing name.
            new_name: new name.
            table_name: name of the log, or of its table of heads.
            schema: schema of the table.
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
    """A block of operations outside of a transaction, for ``CREATE INDEX CONCURRENTLY``."""

    def reverse(self) -> AutocommitBlockOp:
        return AutocommitBlockOp([operation.reverse() for operation in reversed(self.ops)])

    def execute(self, operations: Operations) -> None:
        """Execute the operations, each in its own transaction."""
        with operations.get_context().autocommit_block():
            for operation in self.ops:
                operations.invoke(operation)


#: Operations that `register` adds to `alembic.op`.
OPERATIONS: Final[Sequence[type[LogOperation]]] = (
    CreateLogGuardOp,
    ReplaceLogGuardOp,
    DropLogGuardOp,
    AlterLogSequenceOp,
    RenameLogConstraintOp,
)
