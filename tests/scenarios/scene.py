"""The database of a scenario: the log, the load on it, queries about the nodes, and the proof at the end."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, Event, EventStore, EventTables, WorkerTables
from tests.scenarios.application import CHANNEL, GATE, ORDER, REACHED, Order
from tests.scenarios.fleet import Node
from tests.scenarios.pooler import OPTIONS

__all__ = ["Gate", "Scene"]

# Without a unique constraint, so that a second application is visible.
_TABLES: Final = """
CREATE TABLE applied (
    serial bigserial, consumer text, node text, position bigint, aggregate_id text, version bigint,
    at timestamptz DEFAULT clock_timestamp()
);
CREATE TABLE healed (at timestamptz DEFAULT clock_timestamp());

-- Every search for silent nodes: when it began, and whom it found, by the clock that it judges by. Who leaves removes
-- itself, and is known by its process that has retired before.
CREATE TABLE searches (
    began_at timestamptz, ended_at timestamptz, worker_id uuid, heartbeat_at timestamptz, left_by_itself boolean
);
CREATE FUNCTION begin_search() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('scenario.began_at', clock_timestamp()::text, true);
    RETURN NULL;
END $$;
CREATE FUNCTION end_search() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO searches
    SELECT current_setting('scenario.began_at')::timestamptz, clock_timestamp(),
        worker_id, heartbeat_at, consumers = '{}'
    FROM (SELECT) AS once LEFT JOIN gone ON true;
    RETURN NULL;
END $$;
CREATE TRIGGER begin_search BEFORE DELETE ON worker_nodes FOR EACH STATEMENT EXECUTE FUNCTION begin_search();
CREATE TRIGGER end_search AFTER DELETE ON worker_nodes REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION end_search();
"""

_NOT_ONCE: Final = text(
    "SELECT wanted.consumer, events.global_position, count(applied.position) FROM events"
    " CROSS JOIN unnest(CAST(:consumers AS text[])) AS wanted (consumer)"
    " LEFT JOIN applied ON applied.consumer = wanted.consumer AND applied.position = events.global_position"
    " WHERE events.global_position <= :up_to"
    " GROUP BY 1, 2 HAVING count(applied.position) <> 1 ORDER BY 1, 2 LIMIT 20"
)
_NOT_THERE: Final = text(
    "SELECT applied.consumer, applied.position FROM applied LEFT JOIN events ON global_position = position"
    " AND events.aggregate_id = applied.aggregate_id AND aggregate_version = version"
    " WHERE global_position IS NULL LIMIT 20"
)
_DISORDERED: Final = text(
    "SELECT consumer, aggregate_id, before, version FROM (SELECT consumer, aggregate_id, version,"
    " lag(version, 1, 0::bigint) OVER (PARTITION BY consumer, aggregate_id ORDER BY serial) AS before FROM applied)"
    " AS neighbours WHERE version <> before + 1 LIMIT 20"
)


class Gate:
    """A gate at which an order to wait waits until the gate is opened."""

    def __init__(self, scene: Scene, connection: Any) -> None:
        self._scene = scene
        self._connection = connection

    def is_reached(self) -> bool:
        return self._scene.is_reached(GATE)

    def open(self) -> None:
        self._connection.execute(text(f"SELECT pg_advisory_unlock({GATE})"))


class Scene:
    """The database, its tables created.

    Args:
        url: URL of an empty database, ``postgresql+psycopg://…``.
        writers_url: URL of the pooler, if the writers use it.
    """

    def __init__(self, url: str, writers_url: str | None = None) -> None:
        self.engine = create_engine(
            url, connect_args={"application_name": "scenario"}, isolation_level="AUTOCOMMIT", pool_pre_ping=True
        )
        self.store = EventStore(EventTables(), notify_channel=CHANNEL)
        self._writers = create_engine(
            writers_url or url,
            connect_args={"application_name": "scenario"} | (OPTIONS["psycopg"] if writers_url else {}),
            pool_pre_ping=True,
        )
        WorkerTables(self.store.tables.metadata)
        self.store.tables.metadata.create_all(self.engine)
        with self.engine.connect() as connection:
            connection.exec_driver_sql(_TABLES)

    def query(self, sql: Any, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql) if isinstance(sql, str) else sql, parameters)]

    def scalar(self, sql: Any, **parameters: Any) -> Any:
        return self.query(sql, **parameters)[0][0]

    def execute(self, sql: str, **parameters: Any) -> None:
        with self.engine.connect() as connection:
            connection.execute(text(sql), parameters)

    # -- the log -----------------------------------------------------------------------------------------------

    def append(self, *aggregate_ids: str) -> int:
        """Append an event to each of these in one transaction, and return the last position."""
        position = 0
        with Session(self._writers) as session:
            for each in aggregate_ids:
                appended = self.store.append(session, AnyVersion(), [_event(each)])
                position = appended.global_positions[-1]
            session.commit()
        return position

    def order(self, consumer: str, what: str, *, node: Node | None = None, aggregate_id: str = "ordered") -> int:
        """Append an order and return its position."""
        order = Order(consumer, what, node.name if node else None)
        event = _event(aggregate_id, event_type=ORDER, payload=asdict(order))
        with Session(self._writers) as session:
            position = self.store.append(session, AnyVersion(), [event]).global_positions[0]
            session.commit()
        return position

    @contextmanager
    def load(self, *consumers: str, writers: int = 2) -> Iterator[None]:
        """Append during the block, about 700 events per second and consumer, with rollbacks and outages.

        The load is lower than the consumers could handle, so that nodes that start get processor time. It waits when
        the consumers do not advance.
        """
        is_over = threading.Event()
        with ThreadPoolExecutor(writers) as pool:
            futures = [pool.submit(self._write, number, consumers, is_over) for number in range(writers)]
            try:
                yield
            finally:
                is_over.set()
            for future in futures:
                future.result()

    def _write(self, number: int, consumers: Collection[str], is_over: threading.Event) -> None:
        chance = random.Random(number)
        while not is_over.wait(0.01 * len(consumers)):
            with suppress(OperationalError), Session(self._writers) as session:  # during a restart of the server
                if self.backlog(consumers) > 100 * len(consumers):
                    continue
                for _ in range(chance.choice([1, 2, 8])):
                    self.store.append(session, AnyVersion(), [_event(f"w{number}-{chance.randrange(7)}")])
                if chance.random() < 0.9:
                    session.commit()

    # -- queries about the nodes ---------------------------------------------------------------------------------------

    def backlog(self, consumers: Collection[str]) -> int:
        """Return the number of missing applications. The proof at the end finds events that were applied twice."""
        return int(
            self.scalar(
                "SELECT greatest(0, (SELECT count(*) FROM events) * :count"
                " - (SELECT count(*) FROM applied WHERE consumer = ANY (:consumers)))",
                count=len(consumers),
                consumers=list(consumers),
            )
        )

    def applied(self, consumer: str, *, after: int = 0) -> dict[int, str]:
        """Return the node and the position of each application."""
        return dict(
            self.query(
                "SELECT position, node FROM applied WHERE consumer = :consumer AND position > :after ORDER BY serial",
                consumer=consumer,
                after=after,
            )
        )

    def applications(self, node: Node | None = None) -> int:
        """Return the number of applications, by one node or by all."""
        name = node.name if node else None
        return int(self.scalar("SELECT count(*) FROM applied WHERE node = coalesce(:name, node)", name=name))

    def progress(self, node: Node | None = None, *, by: int = 20) -> Callable[[], bool]:
        """Return a condition: `by` more events are applied than now, by one node or by all."""
        before = self.applications(node)
        return lambda: self.applications(node) >= before + by

    def shares(self) -> dict[int, int]:
        """Return the number of partitions of each node, by its process id."""
        return dict(
            self.query(
                "SELECT pid, count(consumer_name) FROM worker_nodes LEFT JOIN consumer_assignments USING (worker_id)"
                " GROUP BY pid"
            )
        )

    def owner(self, consumer: str) -> int | None:
        """Return the process to which partition 0 is assigned."""
        found = self.query(
            "SELECT pid FROM consumer_assignments LEFT JOIN worker_nodes USING (worker_id)"
            " WHERE consumer_name = :consumer AND partition = 0",
            consumer=consumer,
        )
        return found[0][0] if found else None

    def backends(self, condition: str = "true") -> list[int]:
        """Return the connections of the nodes that meet a condition."""
        return [
            pid
            for (pid,) in self.query(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                f" AND backend_type = 'client backend' AND application_name <> 'scenario' AND {condition} ORDER BY pid"
            )
        ]

    def is_reached(self, lock: int = REACHED) -> bool:
        """Return True if a handler holds an advisory lock, or waits for it."""
        return bool(
            self.scalar(
                "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
                " WHERE locktype = 'advisory' AND mode = 'ShareLock' AND classid = 0 AND objsubid = 1"
                " AND objid = :lock AND datname = current_database()",
                lock=lock,
            )
        )

    @contextmanager
    def closed_gate(self) -> Iterator[Gate]:
        """Close the gate until it is opened or the block ends."""
        with self.engine.connect() as connection:
            connection.execute(text(f"SELECT pg_advisory_lock({GATE})"))
            yield Gate(self, connection)
            connection.invalidate()

    def now(self) -> datetime:
        return self.scalar("SELECT clock_timestamp()")  # type: ignore[no-any-return]

    # -- the proof ---------------------------------------------------------------------------------------------

    def assert_applied_exactly_once(self, *consumers: str, up_to: int | None = None) -> None:
        """Check that each consumer applied every event once, up to a position, and each aggregate's in order."""
        last = self.scalar("SELECT max(global_position) FROM events") if up_to is None else up_to
        assert self.query(_NOT_ONCE, consumers=list(consumers), up_to=last) == [], "not applied exactly once"
        assert self.query(_NOT_THERE) == [], "applied, and not in the log"
        assert self.query(_DISORDERED) == [], "applied in another order, or with gaps"

    def close(self) -> None:
        self.engine.dispose()
        self._writers.dispose()


def _event(aggregate_id: str, *, event_type: str = "Happened", payload: Any = None) -> Event:
    return Event(aggregate_type="Thing", aggregate_id=aggregate_id, event_type=event_type, payload=payload or {})
