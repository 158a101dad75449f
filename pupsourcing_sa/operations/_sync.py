"""Operations on consumers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select

from pupsourcing_sa._checks import check_seconds, check_text, check_type
from pupsourcing_sa.errors import OperationRefusedError
from pupsourcing_sa.operations._result import OperationResult
from pupsourcing_sa.operations._statements import OperationStatements
from pupsourcing_sa.postgres.connections import SyncSession, connection_of, require_transaction
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.tables import WorkerTables

__all__ = ["ConsumerOperations"]


class ConsumerOperations:
    """Operations on consumers, in the caller's transaction, safe against running and suspended nodes, and audited.

    Every method takes a ``Session`` or a ``Connection`` and the consumer's name. It waits for running batches of the
    consumer, and keeps the next ones out until the caller commits. Each one needs READ COMMITTED.

    Args:
        tables: the workers' tables.
        store: the log.
        actor: the operator, for the row in ``consumer_operations``.
        heartbeat_timeout: seconds without a heartbeat after which a node does not count as running. Use the value of
            the workers' `WorkerConfig`.

    >>> operations = ConsumerOperations(WorkerTables(), EventStore(EventTables()), actor="ann")  # doctest: +SKIP
    >>> with Session(engine) as session:  # doctest: +SKIP
    ...     operations.remove(session, "balances")
    ...     session.commit()
    """

    def __init__(
        self,
        tables: WorkerTables,
        store: EventStore | AsyncEventStore,
        *,
        actor: str,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        check_type("tables", tables, WorkerTables, "WorkerTables")
        check_type("store", store, (EventStore, AsyncEventStore), "an EventStore")
        self._tables = tables
        self._events = (store.sync_store if isinstance(store, AsyncEventStore) else store).tables
        self._actor = check_text("actor", actor)
        self._heartbeat_timeout = check_seconds("heartbeat_timeout", heartbeat_timeout)
        self._statements = OperationStatements(tables)
        self._log_name = LogName(self._events, tables)

    def remove(self, session: SyncSession, name: str) -> OperationResult:
        """Delete everything that the tables know about a consumer. Its read model stays.

        A worker that has the consumer in its code and starts later begins it at the start of the log. Nodes that were
        suspended meanwhile do not bring it back. A drain that is running does, because no table shows it.

        Raises:
            OperationRefusedError: a running node has the consumer, there is no such consumer, or the transaction is not
                READ COMMITTED.
        """
        statements, own = self._statements, {"name": name}
        with translated(*self._tables.tables):
            connection = self._begin(session, "remove", name)
            if nodes := connection.execute(statements.live_nodes(self._heartbeat_timeout), own).all():
                running = ", ".join(f"{node.hostname} (pid {node.pid})" for node in nodes)
                raise OperationRefusedError(
                    "remove", name, f"running nodes have it: {running}. Stop them, or deploy code without it"
                )
            before = self._lock(connection, "remove", name)
            # The nodes that are left have sent no heartbeat. When they come back, they learn that they were removed.
            connection.execute(statements.delete_nodes, own)
            # First the assignments: without one, no batch creates a checkpoint.
            for delete in (
                statements.delete_assignments,
                statements.delete_parked_aggregates,
                statements.delete_checkpoints,
            ):
                connection.execute(delete, own)
            return self._finish(connection, "remove", name, before, _log_of(before))

    def adopt_log(self, session: SyncSession, name: str) -> OperationResult:
        """Let a consumer follow the store's log, after that log was renamed.

        Raises:
            OperationRefusedError: the former log still exists, so it was not renamed; there is no such consumer; or the
                transaction is not READ COMMITTED.
        """
        with translated(*self._tables.tables):
            connection = self._begin(session, "adopt_log", name)
            before = self._lock(connection, "adopt_log", name)
            former, log = _log_of(before), self._log_name.read(session)
            if former not in (None, log) and self._log_name.exists(session, former):
                raise OperationRefusedError(
                    "adopt_log",
                    name,
                    f"its checkpoints belong to the log {former}, which still exists and was not renamed to {log}. "
                    "Give the consumer another name, or use other WorkerTables for each log",
                )
            for update in self._statements.set_log():
                connection.execute(update, {"name": name, "given_log": log})
            return self._finish(connection, "adopt_log", name, before, log)

    # -- the operator's transaction ----------------------------------------------------------------------------

    def _begin(self, session: SyncSession, operation: str, name: str) -> Connection:
        """Become the leader, in a transaction of the right isolation level."""
        check_text("name", name)
        connection = connection_of(session, self._tables.consumer_checkpoints.update())
        require_transaction(connection)
        isolation = connection.scalar(self._statements.isolation)
        if isolation not in ("read committed", "read uncommitted"):
            raise OperationRefusedError(
                operation,
                name,
                f"the transaction is {str(isolation).upper()}, whose snapshot may be older than the last batch. Use a "
                "transaction under READ COMMITTED",
            )
        connection.execute(self._statements.lead)
        return connection

    def _lock(self, connection: Connection, operation: str, name: str) -> dict[str, list[dict[str, Any]]]:
        """Lock the checkpoints, and return the consumer's rows."""
        rows = self._rows(connection, name, self._statements.lock_checkpoints)
        if not any(rows.values()):
            known = ", ".join(map(repr, sorted(connection.scalars(self._statements.consumers)))) or "none"
            raise OperationRefusedError(operation, name, f"the tables do not have it. They have: {known}")
        return rows

    def _rows(self, connection: Connection, name: str, checkpoints: Select[Any]) -> dict[str, list[dict[str, Any]]]:
        """Return the consumer's rows; a statement reads or locks those of the checkpoints."""
        return {
            "checkpoints": list(connection.scalars(checkpoints, {"name": name})),
            "assignments": list(connection.scalars(self._statements.assignments, {"name": name})),
        }

    def _finish(
        self,
        connection: Connection,
        operation: str,
        name: str,
        before: dict[str, list[dict[str, Any]]],
        log: str | None,
    ) -> OperationResult:
        """Write the row of the audit."""
        result = OperationResult(name, operation, before, self._rows(connection, name, self._statements.checkpoints))
        parameters = {
            "name": name,
            "given_actor": self._actor,
            "given_operation": operation,
            "given_detail": {"before": result.before, "after": result.after},
            "given_log": log,
        }
        connection.execute(self._statements.audit, parameters)
        return result


def _log_of(rows: dict[str, list[dict[str, Any]]]) -> str | None:
    return next((row["log"] for table in rows.values() for row in table if row["log"] is not None), None)
