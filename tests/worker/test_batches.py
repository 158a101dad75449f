"""The end of a batch: its size, its checkpoint and its telemetry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pupsourcing_sa import PersistedEvent, consumer
from tests.fix_worker import INSERT, Fleet, Recorder


def transactions(fleet: Fleet, name: str) -> list[int]:
    """Return the number of events of each transaction of a consumer."""
    rows = fleet.query(
        "SELECT count(*) FROM seen WHERE consumer = :name GROUP BY xmin::text ORDER BY min(number)", name=name
    )
    return [count for (count,) in rows]


def test_a_consumers_own_batch_size_counts(fleet: Fleet):
    fleet.append(10)
    fleet.worker(fleet.see("own", batch_size=4), fleet.see("set"), batch_size=7).drain()
    assert transactions(fleet, "own") == [4, 4, 2]
    assert transactions(fleet, "set") == [7, 3]


def test_a_batch_that_has_taken_long_is_committed_with_what_it_has_come_to(fleet: Fleet):
    for event_type in ("A", "B", "A", "A", "B"):
        fleet.append(event_type=event_type)
    checkpoints: list[Any] = []

    def look(event: PersistedEvent) -> None:
        checkpoints.append(fleet.checkpoint("slow").last_position)

    fleet.worker(fleet.see("slow", check=look, event_types={"A"}), batch_time=1e-9).drain()
    assert fleet.seen("slow") == [1, 3, 4]
    assert transactions(fleet, "slow") == [1, 1, 1]
    assert checkpoints == [0, 1, 3]
    assert fleet.checkpoint("slow").last_position == 5


def test_a_batch_handler_gets_all_at_once_however_long_it_takes(fleet: Fleet):
    sizes: list[int] = []
    fleet.append(5)
    fleet.worker(fleet.see_batches("all", check=lambda events: sizes.append(len(events))), batch_time=1e-9).drain()
    assert sizes == [5]


def test_each_batch_begins_with_a_clean_session(sync_fleet: Fleet):
    """Batches that follow one another share the object."""

    class Base(DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = "rows"
        id: Mapped[int] = mapped_column(primary_key=True)

    Base.metadata.create_all(sync_fleet.engine)
    found: list[int] = []
    rows: list[Row] = []

    @consumer("keeps", batch_size=1)
    def keep(session: Session, event: PersistedEvent) -> None:
        found.append(len(list(session)))
        rows.append(Row(id=event.global_position))
        session.add(rows[-1])

    sync_fleet.append(3)
    sync_fleet.worker(keep).drain()
    assert found == [0, 0, 0]
    assert sync_fleet.query("SELECT count(*) FROM rows") == [(3,)]


def test_spans(fleet: Fleet):
    recorder = Recorder()
    fleet.append(5)
    worker = fleet.worker(fleet.see("all", batch_size=2), telemetry=recorder)
    worker.drain()
    assert recorder.named("worker.batch") == [
        {"worker": str(worker.id), "consumer": "all", "partition": 0, "events": events, "position": position}
        for events, position in ((2, 2), (2, 4), (1, 5))
    ]


def test_the_handler_runs_inside_the_span(fleet: Fleet):
    stack: list[str] = []

    class Tracing(Recorder):
        @contextmanager
        def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
            stack.append(name)
            yield
            stack.remove(name)

    fleet.append()
    found: list[bool] = []
    fleet.worker(
        fleet.see("all", check=lambda event: found.append("worker.batch" in stack)), telemetry=Tracing()
    ).drain()
    assert found == [True]
    assert stack == []


def test_a_batch_handler_may_do_with_its_list_what_it_likes(sync_fleet: Fleet):
    class Greedy:
        name = "greedy"

        def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
            events.sort(key=lambda event: event.global_position, reverse=True)
            while events:
                session.execute(INSERT, {"consumer": "greedy", "position": events.pop().global_position})

    sync_fleet.append(10)
    sync_fleet.worker(Greedy(), batch_size=4).drain()
    assert sync_fleet.seen("greedy") == list(range(1, 11))
    assert sync_fleet.checkpoint("greedy").last_position == 10
