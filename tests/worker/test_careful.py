"""Careful mode: after deaths, events are announced and handled one by one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.worker.processing.batch import BatchRequest, BatchTransaction
from pupsourcing_sa.worker.processing.careful import Announcements, CarefulMode, is_suspicious
from pupsourcing_sa.worker.processing.outcomes import BatchResult, NodesDied, RetryLater
from pupsourcing_sa.worker.processing.overdue import BatchProgress
from pupsourcing_sa.worker.running import Announcement
from tests.fix_postgres import before_statements
from tests.fix_processing import context_of
from tests.fix_worker import INSERT, Fleet, Recorder
from tests.waiting import patiently
from tests.worker.test_batches import transactions


class TestDecisions:
    def test_a_single_death_may_have_any_reason(self):
        assert [is_suspicious(deaths) for deaths in range(4)] == [False, False, True, True]

    def test_it_ends_behind_everything_that_the_fatal_batch_could_have_had(self):
        mode = CarefulMode(events=3, up_to=100)
        second = mode.after(handled=1, scanned=10)
        assert second == CarefulMode(events=2, up_to=100)
        assert second.after(handled=0, scanned=50) == second, "a page without events of the scope"
        assert second.after(handled=1, scanned=51) == CarefulMode(events=1, up_to=100)
        assert second.after(handled=1, scanned=100) is None, "the log had no more events"
        assert CarefulMode(events=1, up_to=100).after(handled=1, scanned=52) is None


class TestTurns:
    """Only one partition of a node is in careful mode at a time, so that an announcement names the killer."""

    @pytest.mark.parametrize(
        ("patience", "expected"), [(patiently(60.0), [1, 1]), (0.001, [1, 2])], ids=["patient", "impatient"]
    )
    def test_a_partition_waits_for_another_one_but_not_longer_than_its_patience(
        self, patience: float, expected: list[int]
    ):
        async def main() -> list[int]:
            announcements = Announcements(WorkerTables(), UUID(int=1), patience)
            inside, most, is_tried = 0, [], asyncio.Event()

            async def enter() -> None:
                nonlocal inside
                async with announcements.alone():
                    inside += 1
                    most.append(inside)
                    if len(most) == 1:
                        await is_tried.wait()
                        for _ in range(10):
                            await asyncio.sleep(0)
                        while patience < 1 and len(most) < 2:
                            await asyncio.sleep(0)
                    inside -= 1

            async def enter_too() -> None:
                is_tried.set()
                await enter()

            async with asyncio.TaskGroup() as group:
                group.create_task(enter())
                group.create_task(enter_too())
            return most

        assert asyncio.run(main()) == expected


def mark_deaths(fleet: Fleet, name: str, deaths: int) -> None:
    fleet.query(
        "INSERT INTO consumer_checkpoints (consumer_name, partition, deaths) VALUES (:name, 0, :deaths)",
        name=name,
        deaths=deaths,
        commit=True,
    )


def announced(fleet: Fleet) -> list[Any]:
    return [row[0] for row in fleet.query("SELECT running->'announced' FROM worker_nodes") if row[0] is not None]


def run_until(fleet: Fleet, is_done: Callable[[], bool], *consumers: Any, **options: Any) -> None:
    fleet.start(fleet.worker(*consumers, **options))
    fleet.wait(is_done)


def test_events_are_announced_and_committed_one_by_one(both_fleets: Fleet, caplog: pytest.LogCaptureFixture):
    fleet = both_fleets
    caplog.set_level("INFO")
    fleet.append(12)
    mark_deaths(fleet, "a", 2)
    mark_deaths(fleet, "b", 2)
    seen: dict[str, list[tuple[int, int, Any]]] = {"a": [], "b": []}

    def look(name: str) -> Callable[[PersistedEvent], None]:
        def check(event: PersistedEvent) -> None:
            (announcement,) = announced(fleet) or [None]
            seen[name].append((event.global_position, fleet.checkpoint(name).deaths, announcement))

        return check

    names = ("a", "b")
    consumers = [fleet.see(name, batch_size=4, max_attempts=7, check=look(name)) for name in names]
    run_until(fleet, lambda: all(len(fleet.seen(name)) == 12 for name in names), *consumers)
    for name in names:
        assert transactions(fleet, name) == [1, 1, 1, 1, 4, 4]
        careful, usual = seen[name][:4], seen[name][4:]
        for position, deaths, announcement in careful:
            assert deaths == 2, "a process that starts now must be careful, too"
            assert (announcement["consumer"], announcement["position"]) == (name, position)
            assert announcement["max_attempts"] == 7
        assert [deaths for _, deaths, _ in usual] == [0] * 8
    fleet.stop()
    messages = [record.message for record in caplog.records if record.name == "pupsourcing_sa.worker"]
    assert messages.count("nodes died while they had this partition; handling events one by one") == 2
    assert messages.count("events were handled one by one, and no node died") == 2


def test_a_batch_handler_gets_one_event_at_a_time(sync_fleet: Fleet):
    fleet = sync_fleet
    fleet.append(6)
    mark_deaths(fleet, "all", 5)
    sizes: list[int] = []
    consumes = fleet.see_batches("all", batch_size=3, check=lambda events: sizes.append(len(events)))
    run_until(fleet, lambda: sum(sizes) == 6, consumes)
    assert sizes == [1, 1, 1, 3]


def test_a_partition_that_reaches_the_end_of_the_log_is_usual_again(sync_fleet: Fleet):
    fleet = sync_fleet
    fleet.append(2)
    mark_deaths(fleet, "a", 2)
    run_until(fleet, lambda: fleet.checkpoint("a").last_position == 2, fleet.see("a"))
    fleet.wait(lambda: (fleet.checkpoint("a").deaths, announced(fleet)) == (0, []))


def test_a_handler_that_fails_leaves_no_announcement(both_fleets: Fleet):
    """Otherwise a deployment that kills the process would count another attempt at the event."""
    fleet = both_fleets
    fleet.append(3)
    mark_deaths(fleet, "a", 2)
    found: list[Any] = []

    def check(event: PersistedEvent) -> None:
        if event.global_position == 2:
            found.extend(announced(fleet))
            raise ZeroDivisionError

    consumes = fleet.see("a", max_attempts=2, check=check)
    run_until(fleet, lambda: fleet.checkpoint("a").parked_at is not None, consumes)
    assert [announcement["position"] for announcement in found] == [2, 2]
    assert announced(fleet) == []
    checkpoint = fleet.checkpoint("a")
    assert (checkpoint.last_position, checkpoint.attempts, checkpoint.deaths) == (1, 2, 2)


def test_a_drain_belongs_to_no_node_and_ignores_deaths(fleet: Fleet):
    fleet.append(8)
    mark_deaths(fleet, "a", 9)
    fleet.worker(fleet.see("a", batch_size=4)).drain()
    assert transactions(fleet, "a") == [4, 4]
    assert fleet.checkpoint("a").deaths == 0


def test_batches_cost_nothing_more_while_no_node_dies(sync_fleet: Fleet):
    """With one death, too: lock, read and move."""
    fleet = sync_fleet
    found: list[str] = []

    def add(statement: str) -> None:
        if threading.current_thread().name == "pupsourcing-a-0":
            found.append(statement)

    @consumer("a", batch_size=2)
    def handle(session: Session, event: PersistedEvent) -> None: ...

    fleet.append(6)
    mark_deaths(fleet, "a", 1)
    recorder = Recorder()
    with before_statements(fleet.engine, add):
        run_until(fleet, lambda: fleet.checkpoint("a").last_position == 6, handle, telemetry=recorder)
        fleet.stop()
    assert [data["events"] for data in recorder.named("worker.batch") if data.get("events")] == [2, 2, 2]
    # The first batch also looks up the name of the log.
    kinds = [statement.split()[0] for statement in found]
    assert kinds[kinds.index("UPDATE") + 1 :] == ["SELECT", "SELECT", "UPDATE"] * 2
    assert not any("worker_nodes" in statement for statement in found)


class TestTransactions:
    """Batches without a worker around them."""

    def run(
        self, fleet: Fleet, worker_id: UUID, careful: CarefulMode | None, started_at: datetime | None = None
    ) -> BatchResult | None:
        @consumer("all")
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(INSERT, {"consumer": "all", "position": event.global_position})

        announcements = Announcements(fleet.tables, worker_id, 1.0)
        options = {
            "store": fleet.store,
            "tables": fleet.tables,
            "announcements": announcements,
            "started_at": started_at,
        }
        transaction = BatchTransaction(context_of(handle, execution=None, **options), is_stopping=lambda: False)
        request = BatchRequest(
            last=BatchResult(scanned=0, checkpoint=-1, handled=0),
            up_to=2,
            server_identity=None,
            max_events=1 if careful else 500,
            window=100,
            checkpoint_threshold=1,
            ends_at=float("inf"),
            careful=careful,
        )
        with Session(fleet.engine) as session:

            def bind(handler: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
                return lambda event: handler(session, event)

            return transaction.run(session, bind, request, BatchProgress(0.0))

    def join(self, fleet: Fleet) -> UUID:
        worker_id = uuid4()
        row = "INSERT INTO worker_nodes (worker_id, hostname, pid, consumers) VALUES (:id, 'host', 1, '{all}')"
        fleet.query(row, id=worker_id, commit=True)
        return worker_id

    def test_a_batch_of_several_events_is_refused(self, sync_fleet: Fleet):
        sync_fleet.append(2)
        mark_deaths(sync_fleet, "all", 2)
        with pytest.raises(NodesDied):
            self.run(sync_fleet, self.join(sync_fleet), None)
        assert sync_fleet.seen("all") == []

    def test_a_process_that_is_started_after_a_death_does_not_shorten_the_delay(self, sync_fleet: Fleet):
        """Each of them is new to the failure. Without a delay, they would die one after the other."""
        fleet = sync_fleet
        fleet.append(2)
        mark_deaths(fleet, "all", 3)
        failure = (
            "failed_position = 1, attempts = 1, failed_at = now() - interval '1 h', retry_at = now() + interval '1 h'"
        )
        fleet.query(f"UPDATE consumer_checkpoints SET {failure}", commit=True)
        for careful in (None, CarefulMode(5, 2)):
            with pytest.raises(RetryLater):
                self.run(fleet, self.join(fleet), careful, started_at=datetime.now(UTC))

    def test_a_node_that_was_presumed_dead_handles_no_event(self, sync_fleet: Fleet):
        sync_fleet.append(2)
        mark_deaths(sync_fleet, "all", 2)
        assert self.run(sync_fleet, uuid4(), CarefulMode(5, 2)) is None
        assert sync_fleet.seen("all") == []
        assert self.run(sync_fleet, self.join(sync_fleet), CarefulMode(5, 2)) is not None
        assert sync_fleet.seen("all") == [1]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ("retry_at = now() + interval '1 hour', attempts = 1, failed_position = 1", RetryLater),
            ("last_position = 1", None),
        ],
    )
    def test_the_fence_holds_between_the_announcement_and_the_batch(
        self, sync_fleet: Fleet, monkeypatch: pytest.MonkeyPatch, change: str, expected: type[Exception] | None
    ):
        """The node freezes in between. A leader counts the event, or another node handles it."""
        fleet = sync_fleet
        fleet.append(2)
        mark_deaths(fleet, "all", 2)
        write, lock_is_free = Announcements.write, []

        def freeze(self: Announcements, session: Session, announcement: Announcement | None) -> bool:
            is_written = write(self, session, announcement)
            session.commit()
            lock_is_free.append(fleet.query(f"UPDATE consumer_checkpoints SET {change}", commit=True))
            session.execute(text("SELECT 1"))
            return is_written

        monkeypatch.setattr(Announcements, "write", freeze)
        if expected is None:
            assert self.run(fleet, self.join(fleet), CarefulMode(5, 2)) is None
        else:
            with pytest.raises(expected):
                self.run(fleet, self.join(fleet), CarefulMode(5, 2))
        assert lock_is_free
        assert fleet.seen("all") == []
