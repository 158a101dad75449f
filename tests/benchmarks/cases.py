"""The benchmarks: each compares one operation of the store with the same work in bare psycopg.

**Appending.** For each append, the store's side opens a `Session`, appends once, commits and closes it (or a
`Connection` if the name says so). The baseline executes the statement that the store executes, with the same
parameters, on one open connection, and commits. Both sides get their `Event` objects or parameters ready-made. The
ratio is therefore the cost of ``store.append`` and of SQLAlchemy.

- ``+ Events built`` adds the building of the objects to the store's side only.
- ``beside Session`` opens, uses past Core and closes a `Session` in the baseline, too: the cost of the store alone.
- ``hot stream`` appends to one aggregate, without an expected version. The other benchmarks create new aggregates.

**Reading.** The store's side opens a `Session` for each call. The baseline selects the plain columns of the same rows
into tuples, with psycopg's default loaders. It gets the stable position, which the store has to read, as a parameter.

A payload is about 200 bytes of JSON. Every other event has metadata. No event has a trace, correlation or causation id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, Event, EventStore, EventTables, NoStream

__all__ = ["AGGREGATES", "CASES", "STREAM", "Case", "Database", "Side", "make_events", "store"]

#: The log that is read: number of aggregates, and number of events of each.
AGGREGATES, STREAM = 50, 1000

store = EventStore(EventTables())


class Side(NamedTuple):
    """``supply`` makes the arguments of `n` operations, unmeasured; ``run`` runs one and returns its event count."""

    supply: Callable[[int], Sequence[Any]]
    run: Callable[[Any], int]


class Case(NamedTuple):
    """A row of the table; ``sides`` returns the store's side and the baseline, in the process that runs them."""

    sides: Callable[[Database], tuple[Side, Side]]
    writers: int = 1
    goal: float | None = None
    is_reading: bool = False


class Database:
    """The connections of one process: an engine for the store's side, a connection for the baseline."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.psycopg = psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
        self._recorder = create_engine(url)
        self._recorded: list[tuple[str, Any]] = []
        event.listen(self._recorder, "before_cursor_execute", self._record, retval=True)

    def _record(self, connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
        self._recorded.append((statement, parameters))
        return "SELECT 1::bigint, 1::bigint", {}

    def what_append_executes(self, expected: Any, batches: Sequence[Sequence[Event]]) -> Sequence[tuple[str, Any]]:
        """Return the text and the parameters that SQLAlchemy passes to psycopg for each of these appends."""
        with self._recorder.connect() as connection:
            for batch in batches:
                store.append(connection, expected, batch)
        recorded, self._recorded = self._recorded, []
        return recorded


def make_events(aggregate_id: str, size: int, number: int = 0) -> list[Event]:
    payload = {
        "sku": "PUP-4711-BLUE-XL",
        "description": "Blue jumper for a dog of eleven kilograms, machine washable",
        "unit_price": {"amount": "49.90", "currency": "EUR"},
        "warehouse": {"country": "NL", "shelf": "17-B-42"},
    }
    with_metadata = {"metadata": {"user": "ann", "client": "web 4.2"}}
    return [
        Event(
            aggregate_type="Order",
            aggregate_id=aggregate_id,
            event_type="OrderLineAdded",
            payload=payload | {"line": place},
            **(with_metadata if place % 2 else {}),
        )
        for place in range(number, number + size)
    ]


def _append(
    size: int,
    database: Database,
    *,
    is_hot: bool = False,
    builds_events: bool = False,
    is_beside_session: bool = False,
    opened: Callable[[Engine], Any] = Session,
) -> tuple[Side, Side]:
    expected = AnyVersion() if is_hot else NoStream()

    def batch(number: int) -> list[Event]:
        return make_events("hot" if is_hot else str(uuid4()), size, number)

    def append(given: Any) -> int:
        with opened(database.engine) as session:
            store.append(session, expected, batch(given) if builds_events else given)
            session.commit()
        return size

    def execute(recorded: tuple[str, Any]) -> int:
        database.psycopg.execute(*recorded).fetchall()
        database.psycopg.commit()
        return size

    def execute_in_session(recorded: tuple[str, Any]) -> int:
        with Session(database.engine) as session:
            session.connection().exec_driver_sql(*recorded).cursor.fetchall()
            session.commit()
        return size

    def batches(count: int) -> list[list[Event]]:
        return list(map(batch, range(count)))

    def recorded(count: int) -> Sequence[tuple[str, Any]]:
        return database.what_append_executes(expected, batches(count))

    baseline = Side(recorded, execute_in_session if is_beside_session else execute)
    return Side(range if builds_events else batches, append), baseline


def _read(
    call: Callable[[Any, Any], Any],
    arguments: Sequence[Any],
    text: str,
    parameters: Callable[[Any], Sequence[Any]],
    database: Database,
    opened: Callable[[Engine], Any] = Session,
) -> tuple[Side, Side]:
    columns = ", ".join(column.name for column in store.tables.events.c)

    def read(argument: Any) -> int:
        with opened(database.engine) as session:
            return len(call(session, argument))

    def fetch(argument: Any) -> int:
        rows = database.psycopg.execute(f"SELECT {columns} FROM events WHERE {text}", parameters(argument)).fetchall()
        database.psycopg.rollback()
        return len(rows)

    def supply(count: int) -> list[Any]:
        return list(islice(cycle(arguments), count))

    return Side(supply, read), Side(supply, fetch)


def _read_stream(database: Database) -> tuple[Side, Side]:
    return _read(
        lambda session, aggregate_id: store.read_aggregate_stream(session, "Order", aggregate_id),
        list(map(str, range(AGGREGATES))),
        "aggregate_type = %s AND aggregate_id = %s ORDER BY aggregate_version",
        lambda aggregate_id: ("Order", aggregate_id),
        database,
    )


def _read_log(limit: int, database: Database, opened: Callable[[Engine], Any] = Session) -> tuple[Side, Side]:
    with Session(database.engine) as session:
        last = store.stable_position(session)
    return _read(
        lambda session, after: store.read_events(session, after=after, limit=limit),
        range(last - AGGREGATES * STREAM, last, limit),
        "global_position > %s AND global_position <= %s ORDER BY global_position LIMIT %s",
        lambda after: (after, last, limit),
        database,
        opened,
    )


CASES: dict[str, Case] = {}
for _name, _size, _goal in (("1 event", 1, 0.75), ("10 events", 10, 0.80), ("100 events", 100, None)):
    CASES |= {
        f"append {_name}": Case(partial(_append, _size), goal=_goal),
        f"append {_name} + Events built": Case(partial(_append, _size, builds_events=True)),
        f"append {_name}, Connection": Case(partial(_append, _size, opened=Engine.connect)),
        f"append {_name}, beside Session": Case(partial(_append, _size, is_beside_session=True)),
        f"append {_name}, 8 writers": Case(partial(_append, _size), writers=8),
    }
CASES |= {
    "hot stream, append 1 event": Case(partial(_append, 1, is_hot=True)),
    "hot stream, append 1 event, 8 writers": Case(partial(_append, 1, is_hot=True), writers=8),
    "read_aggregate_stream, 1,000 events": Case(_read_stream, is_reading=True),
    "read_events, pages of 100": Case(partial(_read_log, 100), is_reading=True),
    "read_events, pages of 1,000": Case(partial(_read_log, 1000), is_reading=True, goal=1.0),
    "read_events, pages of 1,000, Connection": Case(partial(_read_log, 1000, opened=Engine.connect), is_reading=True),
}
