"""The benchmarks of lost races. Ours are batches under REPEATABLE READ, the default.

**An application writes the same row.** A consumer counts in one row; each event takes it a millisecond. Another thread
changes the same row every 20 ms. The baseline is the same consumer under READ COMMITTED, which overwrites some of the
application's writes.

**Partitions share rows.** A consumer with four partitions counts in 200 rows, which all partitions write. One baseline
is the same consumer under READ COMMITTED, which loses updates. The other one has one partition.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.worker import Worker
from tests.benchmarks.cases import Case, Database, Side, store
from tests.benchmarks.worker_cases import worker_metadata, worker_tables

__all__ = ["RACE_CASES"]

_CONTENDED_EVENTS, _SHARED_EVENTS = 2_000, 4_000
_SHARED_ROWS = 200


class _Base(DeclarativeBase):
    metadata = worker_metadata


class _Count(_Base):
    __tablename__ = "benchmark_shared_counts"
    id: Mapped[int] = mapped_column(primary_key=True)
    events: Mapped[int]
    writes: Mapped[int]


def _side(name: str, database: Database, *, isolation: str, partitions: int, rows: int) -> Side:
    """Return a side whose worker catches up with the last events."""
    is_contended = rows == 1
    events = _CONTENDED_EVENTS if is_contended else _SHARED_EVENTS

    @consumer(name, isolation=isolation, partitions=partitions)
    def count(session: Session, event: PersistedEvent) -> None:
        session.get_one(_Count, event.global_position % rows).events += 1
        if is_contended:
            time.sleep(0.001)

    worker = Worker(sessionmaker(database.engine), store, [count], tables=worker_tables)

    def run(_: int) -> int:
        _prepare(database, name, partitions, events)
        with _application(database) if is_contended else _nobody():
            worker.drain()
        with Session(database.engine) as session:
            counted = session.scalars(select(func.sum(_Count.events))).one()
        assert isolation == "READ COMMITTED" or counted == events, f"{counted} of {events} events were counted"
        return events

    return Side(range, run)


@contextmanager
def _nobody() -> Iterator[None]:
    yield


@contextmanager
def _application(database: Database) -> Iterator[None]:
    """Change the row every 20 ms, until the end of the block."""
    is_over = threading.Event()

    def write() -> None:
        while not is_over.wait(0.02):
            with Session(database.engine) as session:
                session.execute(update(_Count).where(_Count.id == 0).values(writes=_Count.writes + 1))
                session.commit()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _prepare(database: Database, name: str, partitions: int, events: int) -> None:
    """Set all counts to 0, and move the checkpoints back by some events."""
    log, checkpoints = store.tables.events.c.global_position, worker_tables.consumer_checkpoints
    with Session(database.engine) as session:
        position = session.scalars(select(log).order_by(log.desc()).offset(events).limit(1)).one()
        session.execute(delete(_Count))
        session.add_all(_Count(id=number, events=0, writes=0) for number in range(_SHARED_ROWS))
        session.execute(checkpoints.delete().where(checkpoints.c.consumer_name == name))
        rows: list[dict[str, Any]] = [
            {"consumer_name": name, "partition": number, "last_position": position} for number in range(partitions)
        ]
        session.execute(checkpoints.insert(), rows)
        session.commit()


def _contended(database: Database) -> tuple[Side, Side]:
    side = partial(_side, database=database, partitions=1, rows=1)
    return side("contended", isolation="REPEATABLE READ"), side("overwriting", isolation="READ COMMITTED")


def _shared(database: Database) -> tuple[Side, Side]:
    side = partial(_side, database=database, partitions=4, rows=_SHARED_ROWS)
    return side("shared", isolation="REPEATABLE READ"), side("losing", isolation="READ COMMITTED")


def _beside_one(database: Database) -> tuple[Side, Side]:
    side = partial(_side, database=database, rows=_SHARED_ROWS, isolation="REPEATABLE READ")
    return side("shared", partitions=4), side("one", partitions=1)


RACE_CASES: dict[str, Case] = {
    "races, the application writes the row": Case(_contended, is_reading=True, goal=0.25),
    "races, 4 partitions share 200 rows": Case(_shared, is_reading=True),
    "races, 4 partitions beside 1": Case(_beside_one, is_reading=True, goal=1.0),
}
