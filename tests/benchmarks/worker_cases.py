"""The benchmarks of the worker: it catches up with a part of the log. Its checkpoint is moved back before each run.

**Empty handler.** The baseline is a loop of bare psycopg over the same batches: lock the checkpoint, fetch the plain
columns as tuples, move the checkpoint, commit.

**Large events.** The same, at the end of the log, with 400 events of 200 kB. The baseline fetches all of them at once;
the worker's batches have a limit of bytes.

**ORM handler.** For each event, the handler gets the row of its aggregate and changes it. The baseline is the same
worker with a handler that executes an ``UPDATE`` for each event.

**Batch handler.** The read model has a row for each aggregate, with a counter. The handler executes one bulk upsert for
each batch. The baseline is the same worker with a handler that executes an ``UPDATE`` for each event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from pupsourcing_sa import Event, NoStream, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.benchmarks.cases import Case, Database, Side, store

__all__ = ["WORKER_CASES", "worker_metadata", "worker_tables"]

#: Number of events to catch up with.
_EVENTS, _FEW_EVENTS, _LARGE_EVENTS = 20_000, 5_000, 400

worker_metadata = MetaData()
worker_tables = WorkerTables(worker_metadata)
_counts = Table(
    "benchmark_counts",
    worker_metadata,
    Column("id", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
)


def _nothing(session: Session, event: PersistedEvent) -> None: ...


@consumer("updates")
def _updates(session: Session, event: PersistedEvent) -> None:
    session.execute(_update, {"key": event.aggregate_id})


_update = update(_counts).where(_counts.c.id == bindparam("key")).values(events=_counts.c.events + 1)


class _Base(DeclarativeBase):
    metadata = worker_metadata


class _Count(_Base):
    __table__ = _counts


@consumer("instances")
def _instances(session: Session, event: PersistedEvent) -> None:
    session.get_one(_Count, event.aggregate_id).events += 1


class _Upserts:
    name = "upserts"

    def handle_batch(self, session: Session, events: Sequence[PersistedEvent]) -> None:
        counts = Counter(event.aggregate_id for event in events)
        statement = insert(_counts).values([{"id": key, "events": count} for key, count in sorted(counts.items())])
        excluded = {"events": _counts.c.events + statement.excluded.events}
        session.execute(statement.on_conflict_do_update(index_elements=[_counts.c.id], set_=excluded))


def _catch_up(events: int, handler: Any, database: Database) -> Side:
    """Return a side whose worker catches up with the last `events` events."""
    worker = Worker(sessionmaker(database.engine), store, [handler], tables=worker_tables)

    def supply(count: int) -> Sequence[int]:
        return range(count)

    def run(_: int) -> int:
        _put_back(database, handler.name, events)
        worker.drain()
        return events

    return Side(supply, run)


def _put_back(database: Database, name: str, events: int) -> int:
    """Move a checkpoint back by `events` events and return its position."""
    checkpoints = worker_tables.consumer_checkpoints
    with Session(database.engine) as session:
        position = session.scalars(
            select(store.tables.events.c.global_position)
            .order_by(store.tables.events.c.global_position.desc())
            .offset(events)
            .limit(1)
        ).one()
        row = {"consumer_name": name, "partition": 0, "last_position": position}
        session.execute(
            insert(checkpoints).values(row).on_conflict_do_update(constraint=checkpoints.primary_key, set_=row)
        )
        if not session.scalar(select(_counts.c.id).limit(1)):
            session.execute(_counts.insert(), [{"id": str(number), "events": 0} for number in range(1000)])
        session.commit()
    return position


def _bare(batch: int, database: Database, events: int = _EVENTS) -> Side:
    columns = ", ".join(column.name for column in store.tables.events.c)
    key = "consumer_name = 'bare' AND partition = 0"

    def run(_: int) -> int:
        _put_back(database, "bare", events)
        connection, last = database.psycopg, 0
        with Session(database.engine) as session:
            stable = store.stable_position(session)
        while last < stable:
            (last,) = connection.execute(
                f"SELECT last_position FROM consumer_checkpoints WHERE {key} FOR UPDATE SKIP LOCKED"
            ).fetchone()
            rows = connection.execute(
                f"SELECT {columns} FROM events WHERE global_position > %s AND global_position <= %s"
                " ORDER BY global_position LIMIT %s",
                (last, stable, batch),
            ).fetchall()
            last = rows[-1][0] if len(rows) == batch else stable
            connection.execute(
                f"UPDATE consumer_checkpoints SET last_position = %s, updated_at = now() WHERE {key}", (last,)
            )
            connection.commit()
        return events

    return Side(range, run)


def _empty_handler(batch: int, database: Database) -> tuple[Side, Side]:
    handler = consumer("nothing", batch_size=batch)(_nothing)
    return _catch_up(_EVENTS, handler, database), _bare(batch, database)


def _large_events(database: Database) -> tuple[Side, Side]:
    with Session(database.engine) as session:
        for number in range(_LARGE_EVENTS):
            event = Event(aggregate_type="Large", aggregate_id=str(number), event_type="Added", payload=b"x" * 200_000)
            store.append(session, NoStream(), [event])
        session.commit()
    handler = consumer("large")(_nothing)
    return _catch_up(_LARGE_EVENTS, handler, database), _bare(_LARGE_EVENTS, database, _LARGE_EVENTS)


def _orm_handler(database: Database) -> tuple[Side, Side]:
    return _catch_up(_FEW_EVENTS, _instances, database), _catch_up(_FEW_EVENTS, _updates, database)


def _handle_batch(database: Database) -> tuple[Side, Side]:
    return _catch_up(_FEW_EVENTS, _Upserts(), database), _catch_up(_FEW_EVENTS, _updates, database)


WORKER_CASES: dict[str, Case] = {
    **{
        f"worker, empty handler, batches of {batch}": Case(
            partial(_empty_handler, batch), is_reading=True, goal=0.9 if batch == WorkerConfig().batch_size else None
        )
        for batch in (100, 500, 1000)
    },
    "worker, ORM handler beside UPDATEs": Case(_orm_handler, is_reading=True),
    "worker, handle_batch beside UPDATEs": Case(_handle_batch, is_reading=True, goal=5.0),
    # The last one, because it appends to the log that the others read.
    "worker, empty handler, large events": Case(_large_events, is_reading=True),
}
