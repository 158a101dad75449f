"""Handlers that fail: isolated, counted, retried, parked."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import PersistedEvent
from pupsourcing_sa.worker.execution.factory import execution_for
from tests.fix_worker import Fleet, Recorder
from tests.waiting import patiently


def test_a_failing_event_is_tried_again_while_others_go_on(both_fleets: Fleet, caplog: pytest.LogCaptureFixture):
    fleet = both_fleets
    is_healed = threading.Event()

    def fail(event: PersistedEvent) -> None:
        if event.global_position == 3 and not is_healed.is_set():
            raise ZeroDivisionError("three\0")

    fleet.append(5)
    fleet.start(fleet.worker(fleet.see("failing", check=fail), fleet.see("other")))
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5])
    fleet.wait(lambda: fleet.attempts("failing") >= 2)
    found = fleet.checkpoint("failing")
    assert (found.last_position, found.failed_position) == (2, 3)
    assert "ZeroDivisionError: three" in found.error
    assert found.retry_at >= found.failed_at
    assert fleet.seen("failing") == [1, 2]
    is_healed.set()
    fleet.wait(lambda: fleet.seen("failing") == [1, 2, 3, 4, 5])
    found = fleet.checkpoint("failing")
    assert (found.attempts, found.failed_position, found.error, found.retry_at) == (0, None, None, None)
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {(record.consumer, record.global_position) for record in failures} == {("failing", 3)}


def test_a_failing_batch_handler_is_narrowed_down_to_the_event(fleet: Fleet):
    def fail(events: list[PersistedEvent]) -> None:
        if any(event.global_position == 7 for event in events):
            raise ZeroDivisionError

    fleet.append(10)
    fleet.start(fleet.worker(fleet.see_batches("batches", check=fail)))
    fleet.wait(lambda: fleet.attempts("batches") > 0)
    assert fleet.seen("batches") == [1, 2, 3, 4, 5, 6]
    assert fleet.checkpoint("batches").failed_position == 7


def test_a_failure_of_the_first_event_of_a_new_consumer_is_recorded(fleet: Fleet):
    def fail(event: PersistedEvent) -> None:
        raise ZeroDivisionError

    fleet.append()
    fleet.start(fleet.worker(fleet.see("new", check=fail)))
    fleet.wait(lambda: fleet.attempts("new") >= 3)
    assert (fleet.checkpoint("new").last_position, fleet.checkpoint("new").failed_position) == (0, 1)


def test_what_fails_with_the_commit_is_narrowed_down_as_well(both_fleets: Fleet):
    fleet = both_fleets
    fleet.query("ALTER TABLE seen ADD UNIQUE (position) DEFERRABLE INITIALLY DEFERRED", commit=True)
    fleet.query("INSERT INTO seen (consumer, position) VALUES ('other', 4)", commit=True)
    fleet.append(6)
    fleet.start(fleet.worker(fleet.see("failing")))
    fleet.wait(lambda: fleet.attempts("failing") >= 1)
    assert fleet.seen("failing") == [1, 2, 3]
    assert fleet.checkpoint("failing").failed_position == 4


def test_a_handler_that_exits_does_not_end_the_worker(both_fleets: Fleet):
    fleet = both_fleets

    def leave(event: PersistedEvent) -> None:
        raise SystemExit(3)

    fleet.append()
    fleet.start(fleet.worker(fleet.see("leaving", check=leave), fleet.see("other")))
    fleet.wait(lambda: fleet.attempts("leaving") >= 1 and fleet.seen("other") == [1])
    assert "SystemExit: 3" in fleet.checkpoint("leaving").error


def test_what_ends_an_event_loop_is_a_failure_where_there_is_none(sync_fleet: Fleet):
    """A handler's thread gets neither Ctrl-C nor the end of a coroutine: it is the handler's own."""
    fleet, errors = sync_fleet, (KeyboardInterrupt, GeneratorExit)

    def leaving(error: type[BaseException]) -> Any:
        def leave(event: PersistedEvent) -> None:
            raise error

        return fleet.see(error.__name__, check=leave, max_attempts=2)

    fleet.append()
    fleet.start(fleet.worker(*map(leaving, errors), fleet.see("other")))
    for error in errors:
        fleet.wait(lambda name=error.__name__: fleet.attempts(name) == 2)
        assert error.__name__ in fleet.checkpoint(error.__name__).error
    fleet.wait(lambda: fleet.seen("other") == [1])


def test_work_that_raises_stop_iteration_ends(engine: Engine):
    """A hook of the pool may raise it. A future does not take it, so that a task would wait forever."""

    def work(session: Session, bind: object) -> None:
        next(iter(()))

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(execution_for(sessionmaker(engine), patiently(20))("work", work), patiently(10))

    asyncio.run(main())


class Counting:
    """A check that fails at one position until it is healed, and writes down what it is given."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.is_healed = False
        self.given: list[int] = []

    def __call__(self, event: PersistedEvent) -> None:
        self.given.append(event.global_position)
        if event.global_position == self.position and not self.is_healed:
            raise ZeroDivisionError


def test_the_next_worker_continues_the_count(fleet: Fleet):
    """With all that it has to know: the event is tried alone, and parked as if nothing had happened."""
    first, second = Counting(3), Counting(3)
    fleet.append(5)
    fleet.start(fleet.worker(fleet.see("failing", check=first)))
    fleet.wait(lambda: fleet.attempts("failing") >= 2)
    fleet.stop()
    attempts = fleet.attempts("failing")
    recorder = Recorder()
    batches = fleet.see_batches("failing", check=lambda events: list(map(second, events)), max_attempts=attempts + 2)
    fleet.start(fleet.worker(batches, telemetry=recorder))
    fleet.wait(lambda: bool(recorder.named("worker.parked")))
    assert fleet.checkpoint("failing").parked_at is not None
    assert second.given == [3, 3]
    assert fleet.attempts("failing") == attempts + 2
    assert [each["attempts"] for each in recorder.named("worker.event_failed")] == [attempts + 1]
    assert [each["attempts"] for each in recorder.named("worker.parked")] == [attempts + 2]


def test_delays_keep_growing_with_the_next_worker(fleet: Fleet):
    fleet.append(2)
    fleet.worker(fleet.see("failing")).drain()
    fleet.append()
    fleet.query("UPDATE consumer_checkpoints SET failed_position = 3, attempts = 4", commit=True)
    recorder = Recorder()
    worker = fleet.worker(
        fleet.see("failing", check=Counting(3)), telemetry=recorder, retry_delay=0.01, max_retry_delay=600
    )
    fleet.start(worker)
    fleet.wait(lambda: bool(recorder.named("worker.event_failed")))
    failed = recorder.named("worker.event_failed")[0]
    assert failed["attempts"] == 5
    assert 0.75 * 0.16 <= failed["retry_after"] <= 0.16


PATIENT = {"retry_delay": 600, "max_retry_delay": 600}


def test_a_process_that_started_after_the_failure_retries_the_event_at_once(
    both_fleets: Fleet, caplog: pytest.LogCaptureFixture
):
    """Once: it may have the corrected handler, and it may not."""
    caplog.set_level(logging.INFO)
    fleet, counts = both_fleets, [Counting(3), Counting(3), Counting(3)]
    counts[2].is_healed = True
    fleet.append(5)
    for attempts, count in enumerate(counts[:2], start=1):
        recorder = Recorder()
        fleet.start(fleet.worker(fleet.see("failing", check=count), telemetry=recorder, **PATIENT))
        fleet.wait(lambda attempts=attempts: fleet.attempts("failing") == attempts)
        looks = len(recorder.named("worker.batch"))
        fleet.query("UPDATE consumer_checkpoints SET last_position = 1", commit=True)  # another processor is started
        fleet.wait(lambda looks=looks, recorder=recorder: len(recorder.named("worker.batch")) > looks)
        assert fleet.attempts("failing") == attempts
        fleet.query("UPDATE consumer_checkpoints SET last_position = 2", commit=True)
        fleet.stop()
    assert counts[1].given == [3]
    fleet.start(fleet.worker(fleet.see("failing", check=counts[2]), **PATIENT))
    fleet.wait(lambda: fleet.seen("failing") == [1, 2, 3, 4, 5])
    assert caplog.messages.count("process started after the failure; retrying the event now") == 2


def test_a_process_that_was_there_at_the_failure_waits_until_the_event_is_due(fleet: Fleet):
    counts, recorders = [Counting(3), Counting(3)], [Recorder(), Recorder()]
    workers = [
        fleet.worker(fleet.see("failing", check=count), telemetry=recorder, **PATIENT)
        for count, recorder in zip(counts, recorders, strict=True)
    ]
    for worker in workers:
        fleet.start(worker)
    fleet.wait(lambda: len(fleet.query("SELECT FROM worker_nodes")) == 2)
    fleet.append(5)
    fleet.wait(lambda: fleet.attempts("failing") == 1)
    (owner,) = fleet.query("SELECT worker_id FROM consumer_assignments")
    number = [worker.id for worker in workers].index(owner.worker_id)
    workers[number].stop()
    other = 1 - number
    fleet.wait(lambda: bool(recorders[other].named("worker.batch")))
    assert counts[other].given == []
    assert fleet.attempts("failing") == 1
    fleet.query("UPDATE consumer_checkpoints SET retry_at = NULL", commit=True)
    fleet.wait(lambda: fleet.attempts("failing") == 2)


def test_a_drain_does_not_wait_and_does_not_count(fleet: Fleet):
    fleet.append(5)
    fleet.start(fleet.worker(fleet.see("failing", check=Counting(3)), retry_delay=600, max_retry_delay=600))
    fleet.wait(lambda: fleet.attempts("failing") == 1)
    fleet.stop()
    with pytest.raises(ZeroDivisionError):
        fleet.worker(fleet.see("failing", check=Counting(3))).drain()
    assert fleet.attempts("failing") == 1
    fleet.worker(fleet.see("failing")).drain()
    assert fleet.seen("failing") == [1, 2, 3, 4, 5]
    assert fleet.attempts("failing") == 0


def test_another_failing_event_is_counted_from_one(fleet: Fleet):
    fleet.append(5)
    fleet.worker(fleet.see("failing")).drain()
    fleet.append()
    fleet.query("UPDATE consumer_checkpoints SET failed_position = 5, attempts = 7", commit=True)
    recorder = Recorder()
    fleet.start(fleet.worker(fleet.see("failing", check=Counting(6)), telemetry=recorder))
    fleet.wait(lambda: bool(recorder.named("worker.event_failed")))
    assert recorder.named("worker.event_failed")[0]["attempts"] == 1


def test_a_failure_that_cannot_be_recorded_is_logged(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    counting = Counting(3)
    fleet.append(5)
    fleet.query("ALTER TABLE consumer_checkpoints ADD CONSTRAINT healthy CHECK (error IS NULL)", commit=True)
    recorder = Recorder()
    fleet.start(fleet.worker(fleet.see("failing", check=counting, max_attempts=1), telemetry=recorder))
    fleet.wait(lambda: len(recorder.named("worker.event_failed")) >= 3)
    assert [each["attempts"] for each in recorder.named("worker.event_failed")[:3]] == [1, 2, 3]
    assert any(record.message == "cannot record the failure" for record in caplog.records)
    assert fleet.attempts("failing") == 0
    counting.is_healed = True
    fleet.wait(lambda: fleet.seen("failing") == [1, 2, 3, 4, 5])
    fleet.wait(lambda: bool(recorder.named("worker.recovered")))
