"""Every statement of the package, as the SQL that the driver gets, formatted for a reader.

A statement that is an attribute of one of the classes below is found by itself. A statement that a method builds is
recorded by calling the method with a connection that executes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch
from uuid import UUID

import sqlglot
from sqlalchemy import ClauseElement, Connection, Engine, TextClause, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

from pupsourcing_sa import AnyVersion, EventTables, Exact, NoStream, WorkerTables
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.migrations._catalog import read_guards
from pupsourcing_sa.migrations._log_statements import AlterLogSequence, RenameLogConstraint
from pupsourcing_sa.operations._statements import OperationStatements
from pupsourcing_sa.postgres.checkpoint_locks import checkpoint_locks
from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.status._statements import StatusStatements
from pupsourcing_sa.store._append_statements import AppendStatements
from pupsourcing_sa.store._position_statements import PositionStatements
from pupsourcing_sa.store._read_statements import ReadStatements
from pupsourcing_sa.store.pages import ByteLimit
from pupsourcing_sa.tables.guard_statements import create_guard, drop_guard, replace_guard
from pupsourcing_sa.tables.guards import current_guards
from pupsourcing_sa.telemetry import NO_TELEMETRY
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.coordination.assignments import Assignments
from pupsourcing_sa.worker.coordination.deaths import Deaths
from pupsourcing_sa.worker.coordination.nodes import Nodes, RemovedNode
from pupsourcing_sa.worker.coordination.processes import ProcessIdentity
from pupsourcing_sa.worker.dispatch.notifications import open_notifications
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.processing.careful import Announcements
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.diagnosis import is_connection_lost
from pupsourcing_sa.worker.processing.lock_watch import HolderQuery
from pupsourcing_sa.worker.running import Announcement

__all__ = ["DIRECTORY", "files", "formatted", "rendered", "statements"]

DIRECTORY = Path(__file__).parent

_DIALECT = PGDialect_psycopg()
_NODE = UUID(int=1)
_SINCE = datetime(2026, 1, 2, tzinfo=UTC)
_ANNOUNCED = Announcement("orders", 0, 5, "event", "Placed", None)


def files() -> dict[str, str]:
    """Return the content of each golden file by its name."""
    return {
        name: "\n".join(f"-- {title}\n{formatted(statement)};\n" for title, statement in group)
        for name, group in _groups().items()
    }


def statements() -> Iterator[tuple[str, ClauseElement]]:
    """Yield every statement with its name."""
    for name, group in _groups().items():
        for title, statement in group:
            yield f"{name}: {title}", statement


def _groups() -> dict[str, list[tuple[str, ClauseElement]]]:
    events, workers = EventTables(), WorkerTables()
    return {
        "append.sql": [*_append(events)],
        "read.sql": [*_attributes(ReadStatements(events)), *_pages(events)],
        "positions.sql": [*_attributes(PositionStatements(events))],
        "checkpoints.sql": [*_attributes(CheckpointStatements(workers, events.events))],
        "log_names.sql": [*_attributes(LogName(events, workers))],
        "locks.sql": [
            ("checkpoint_locks", checkpoint_locks(workers)),
            *_recorded(_find, workers),
            *_recorded(_find_and_terminate, workers),
            *_recorded(_ask_if_lost),
            *_recorded(limit_transaction, 0.5, "lock_timeout"),
        ],
        "notifications.sql": [*_recorded(_listen)],
        "nodes.sql": [
            *_methods(Nodes(workers), _node_arguments),
            *_recorded(_remove_ended, workers),
            *_recorded(_announce, workers),
        ],
        "deaths.sql": [
            *_recorded(_record_death, workers),
            *list(_recorded(_park_after_death, workers))[1:],
        ],
        "assignments.sql": [*_methods(Assignments(workers), _assignment_arguments)],
        "operations.sql": [*_operations(OperationStatements(workers))],
        "status.sql": [*_attributes(StatusStatements(events, workers))],
        "tables.sql": [*_tables(events, workers)],
        "guards.sql": [*_guards(events)],
        "adopt.sql": [*_adopt(events)],
    }  # fmt: skip


def _append(tables: EventTables) -> Iterator[tuple[str, ClauseElement]]:
    statements = AppendStatements(tables, None)
    for expected in (NoStream(), Exact(3), AnyVersion()):
        yield f"one: {expected!r}", statements.one(expected)
    yield from _attributes(statements)
    yield "one: NoStream() with a notify channel", AppendStatements(tables, "events").one(NoStream())
    yield "one: NoStream() with JSONB payloads", AppendStatements(EventTables(payload=JSONB), None).one(NoStream())


def _pages(tables: EventTables) -> Iterator[tuple[str, ClauseElement]]:
    statements = ReadStatements(tables)
    yield "aggregate_stream: forwards", statements.aggregate_stream(backwards=False)
    yield "aggregate_stream: backwards", statements.aggregate_stream(backwards=True)
    for scope in (
        Scope(),
        Scope(event_types=("Opened",)),
        Scope(correlation_id="c"),
        Scope(partitions=4),
        Scope(aggregate_types=("User",)),
        Scope(aggregate_types=("User",), correlation_id="c"),
        Scope(aggregate_types=("User",), event_types=("Opened",), partitions=4),
        Scope(aggregate=("User", "u1"), correlation_id="c"),
        Scope(since=_SINCE, until=_SINCE + timedelta(days=1)),
    ):
        title = ", ".join(name for name in vars(Scope)["__match_args__"] if name in scope.conditions) or "all events"
        yield f"page: {title}", statements.page(scope, backwards=False)
    for byte_limit in ByteLimit:
        limited = statements.page(Scope(), backwards=False, byte_limit=byte_limit)
        yield f"page: byte limit by {byte_limit.value}", limited
    json = ReadStatements(EventTables(payload=JSONB))
    yield "page: JSONB, byte limit by total", json.page(Scope(), backwards=False, byte_limit=ByteLimit.TOTAL)
    yield "page: backwards", statements.page(Scope(), backwards=True)
    yield "page: aggregate types, backwards", statements.page(Scope(aggregate_types=("User",)), backwards=True)


def _tables(events: EventTables, workers: WorkerTables) -> Iterator[tuple[str, ClauseElement]]:
    for table in (*events.tables, *workers.tables):
        yield table.name, CreateTable(table)
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield str(index.name), CreateIndex(index)


def _operations(statements: OperationStatements) -> Iterator[tuple[str, ClauseElement]]:
    yield from _attributes(statements)
    yield "live_nodes", statements.live_nodes(8.0)
    for number, update in enumerate(statements.set_log(), 1):
        yield f"set_log, {number}", update


def _guards(tables: EventTables) -> Iterator[tuple[str, ClauseElement]]:
    yield from _recorded(read_guards)
    for guard in current_guards():
        for make in (create_guard, replace_guard, drop_guard):
            for number, statement in enumerate(make(guard, tables.events), 1):
                yield f"{make.__name__}: {guard.trigger_name}, {number}", statement


def _adopt(tables: EventTables) -> Iterator[tuple[str, ClauseElement]]:
    yield "AlterLogSequence: to identity", AlterLogSequence(tables.events, "identity")
    yield "AlterLogSequence: to serial", AlterLogSequence(tables.events, "serial")
    yield "RenameLogConstraint", RenameLogConstraint(tables.events, "old_name", "new_name")


# -- statements of a class -----------------------------------------------------------------------------------------


def _attributes(owner: object) -> Iterator[tuple[str, ClauseElement]]:
    """Yield the public attributes that are statements."""
    for name in sorted({*vars(owner), *_properties(type(owner))}):
        value = getattr(owner, name)
        if not name.startswith("_") and isinstance(value, ClauseElement):
            yield name, value


def _properties(cls: type) -> Iterator[str]:
    return (name for name, value in vars(cls).items() if isinstance(value, cached_property))


def _methods(owner: Any, arguments: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, ClauseElement]]:
    """Yield what each public method executes, when it is called with a connection and the arguments of that name."""
    for name in sorted(name for name, value in vars(type(owner)).items() if callable(value) and name[0] != "_"):
        yield from _recorded(getattr(owner, name), *arguments.get(name, ()))


def _find(connection: Any, tables: WorkerTables) -> None:
    HolderQuery(Checkpoint(tables, "orders", 0)).find(connection, terminate_dead=False)


def _find_and_terminate(connection: Any, tables: WorkerTables) -> None:
    HolderQuery(Checkpoint(tables, "orders", 0)).find(connection, terminate_dead=True)


def _ask_if_lost(connection: Any) -> None:
    connection.invalidated = connection.closed = False
    is_connection_lost(connection)


def _remove_ended(connection: Any, tables: WorkerTables) -> None:
    process = ProcessIdentity("boot pid:[1]", 4711, 1)
    connection.execute.return_value.all.return_value = [(_NODE, json.dumps(asdict(process)))]
    module = "pupsourcing_sa.worker.coordination.nodes"
    with patch(f"{module}.this_process", return_value=process), patch(f"{module}.has_ended", return_value=True):
        Nodes(tables).remove_ended(connection)


def _announce(connection: Any, tables: WorkerTables) -> None:
    Announcements(tables, _NODE, 1.0).write(connection, _ANNOUNCED)


def _park_after_death(connection: Any, tables: WorkerTables) -> None:
    _record_death(connection, tables, max_attempts=2)


def _record_death(connection: Any, tables: WorkerTables, max_attempts: int | None = None) -> None:
    announced = replace(_ANNOUNCED, max_attempts=max_attempts)
    node = RemovedNode(_NODE, "host", 4711, ["orders"], 1.0, (), announced)
    row = MagicMock(
        consumer_name="orders", partition=0, last_position=1, failed_position=_ANNOUNCED.position, attempts=1
    )
    connection.execute.return_value = [row]
    with patch("random.random", return_value=0.5):
        deaths = Deaths(tables, _NODE, WorkerConfig(), NO_TELEMETRY)
        deaths.record(connection, node, {}, "removed node: no heartbeat")


def _listen(connection: Any) -> None:
    engine = MagicMock(spec=Engine, dialect=_DIALECT)
    engine.connect.return_value = connection
    open_notifications(engine, "events")


def _recorded(call: Callable[..., Any], *arguments: Any) -> Iterator[tuple[str, ClauseElement]]:
    connection = MagicMock(spec=Connection, dialect=_DIALECT)
    with patch("os.getpid", return_value=4711), patch("socket.gethostname", return_value="host"):
        call(connection, *arguments)
    executed = (first for mock_call in connection.mock_calls for first in mock_call.args[:1])
    statements = [text(argument) if isinstance(argument, str) else argument for argument in executed]
    statements = [statement for statement in statements if isinstance(statement, ClauseElement)]
    for number, statement in enumerate(statements, 1):
        yield call.__name__.lstrip("_") + (f", {number}" if len(statements) > 1 else ""), statement


_node_arguments: dict[str, tuple[Any, ...]] = {
    "limit_idleness": (8.0,),
    "write": (_NODE, ["orders"]),
    "beat": (_NODE, ()),
    "remove": (_NODE,),
    "remove_silent": (8.0,),
}
_assignment_arguments: dict[str, tuple[Any, ...]] = {
    "declare": ({"orders": 2}, "public.events"),
    "retire": (["orders"], "public.events"),
    "assign": ({Partition("orders", 0): _NODE},),
    "runnable": (_NODE, {"orders": 2}, "public.events"),
}

# -- rendering -----------------------------------------------------------------------------------------------------


def rendered(statement: ClauseElement) -> str:
    """Return the SQL, with the values that the statement brings itself in place of their parameters."""
    compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    sql = str(compiled)
    given = {name for name, bind in getattr(compiled, "binds", {}).items() if bind.required}
    for name, value in ({} if isinstance(statement, ExecutableDDLElement) else compiled.params).items():
        if name not in given and isinstance(value, (str, int, float, timedelta)):
            literal = f"'{value}'" if isinstance(value, (str, timedelta)) else str(value)
            sql = re.sub(rf"%\({name}\)s(::[A-Z]+)?", lambda _, literal=literal: literal, sql)
    return sql.replace("%%", "%")


def formatted(statement: ClauseElement) -> str:
    """Return the SQL with one clause, and usually one expression, per line."""
    sql = rendered(statement)
    if isinstance(statement, ExecutableDDLElement | TextClause):  # is readable without further formatting
        return sql.strip().expandtabs(4)
    [pretty] = sqlglot.transpile(sql, read="postgres", write="postgres", pretty=True, normalize_functions=False)
    return pretty
