"""A batch that does not end is reported while it runs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.worker.processing.overdue import BatchProgress, OverdueMonitor
from tests.fix_worker import Fleet, Recorder
from tests.waiting import patiently


class Timer:
    """An event loop's timer whose time is the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: float | None = None
        self.look: Callable[[], None] = lambda: None

    def call_later(self, seconds: float, look: Callable[[], None]) -> Timer:
        self.due, self.look = self.now + seconds, look
        return self

    def cancel(self) -> None:
        self.due = None

    def go_to(self, now: float) -> None:
        while self.due is not None and self.due <= now:
            self.now, self.due = self.due, None
            self.look()
        self.now = now


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    timer = Timer()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: timer)
    return timer


@pytest.fixture
def told() -> list[tuple[float, float]]:
    """The reported batches: the time when each began, and the seconds that it had been running."""
    return []


@pytest.fixture
def monitor(timer: Timer, told: list[tuple[float, float]]) -> OverdueMonitor:
    def complain(progress: BatchProgress, seconds: float) -> None:
        told.append((progress.began_at, seconds))

    return OverdueMonitor(30.0, complain, lambda: timer.now)


def test_it_is_told_once(monitor: OverdueMonitor, timer: Timer, told: list[Any]):
    with monitor.watching():
        timer.go_to(5)
        with monitor.batch():
            timer.go_to(34)
            assert told == []
            timer.go_to(36)
            assert told == [(5, 30)]
            timer.go_to(500)
            assert told == [(5, 30)]


def test_each_batch_is_another_one(monitor: OverdueMonitor, timer: Timer, told: list[Any]):
    with monitor.watching():
        for number in range(100):
            with monitor.batch():
                timer.go_to(timer.now + 29 + number % 3 / 3)
        assert told == []
        with monitor.batch():
            begun_at = timer.now
            timer.go_to(timer.now + 100)
        with monitor.batch():
            timer.go_to(timer.now + 100)
    assert [begun for begun, _ in told] == [begun_at, begun_at + 100]
    assert all(30 <= seconds < 60 for _, seconds in told)


def test_waiting_for_a_turn_is_not_running(monitor: OverdueMonitor, timer: Timer, told: list[Any]):
    with monitor.watching():
        timer.go_to(300)
        with monitor.batch():
            timer.go_to(320)
    assert told == []


def test_no_timer_is_left_after_it(monitor: OverdueMonitor, timer: Timer):
    with pytest.raises(ZeroDivisionError), monitor.watching():
        raise ZeroDivisionError
    assert timer.due is None


class Hanging:
    """Consumers that hang at the third event, as long as the test wants."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    async def handle_async(self, session: AsyncSession, event: PersistedEvent) -> None:
        while event.global_position == 3 and not self.may_end.is_set():
            await asyncio.sleep(0.001)

    def handle(self, session: Session, event: PersistedEvent) -> None:
        if event.global_position == 3:
            self.may_end.wait(patiently(20))

    async def handle_batch_async(self, session: AsyncSession, events: list[PersistedEvent]) -> None:
        for event in events:
            await self.handle_async(session, event)

    def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
        for event in events:
            self.handle(session, event)

    def consumer(self, fleet: Fleet, *, is_batch: bool) -> Any:
        if not is_batch:
            return consumer("events")(self.handle_async if fleet.is_async else self.handle)

        class Batches:
            name = "batches"
            handle_batch = staticmethod(self.handle_batch_async if fleet.is_async else self.handle_batch)

        return Batches()


def test_a_handler_that_hangs(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    hanging, recorder = Hanging(), Recorder()

    def reported() -> dict[str, dict[str, Any]]:
        return {data["consumer"]: data for data in recorder.named("worker.batch_overdue")}

    fleet.append(5)
    consumers = hanging.consumer(fleet, is_batch=False), hanging.consumer(fleet, is_batch=True), fleet.see("other")
    fleet.start(fleet.worker(*consumers, telemetry=recorder, stall_warning=0.2))
    fleet.wait(lambda: {"events", "batches"} <= reported().keys())
    hanging.may_end.set()
    for name in ("events", "batches"):
        fleet.wait(lambda name=name: fleet.checkpoint(name).last_position == 5)
    fleet.stop()
    events, batches = reported()["events"], reported()["batches"]
    assert (batches["first_position"], batches["last_position"]) == (1, 5)
    assert "global_position" not in batches
    assert (events["global_position"], events["event_type"]) == (3, "UserRegistered")
    assert events["event_id"] == str(fleet.query("SELECT event_id FROM events WHERE global_position = 3")[0][0])
    for data in (events, batches):
        assert data["partition"] == 0
        assert data["seconds"] >= 0.2
        warnings = [record for record in caplog.records if record.message == "batch is still running"]
        (warning,) = (record for record in warnings if record.consumer == data["consumer"])
        assert (warning.levelno, warning.seconds) == (logging.WARNING, data["seconds"])


def test_a_batch_that_has_no_events_yet():
    assert BatchProgress(0.0).details() == {}
