"""A parked partition is not run until an operator has dealt with the failing event."""

from __future__ import annotations

import logging

import pytest

from pupsourcing_sa import PersistedEvent
from pupsourcing_sa.errors import PartitionParkedError
from tests.fix_worker import Fleet, Recorder

UNPARK = "UPDATE consumer_checkpoints SET parked_at = NULL"


class Failing:
    """A check that fails at one position until it is healed, and counts."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.attempts = 0
        self.is_healed = False

    def __call__(self, event: PersistedEvent) -> None:
        if event.global_position == self.position and not self.is_healed:
            self.attempts += 1
            raise ZeroDivisionError("three")


def is_parked(fleet: Fleet, name: str) -> bool:
    found = fleet.checkpoint(name)
    return found is not None and found.parked_at is not None


def test_after_max_attempts(both_fleets: Fleet, caplog: pytest.LogCaptureFixture):
    fleet, failing, recorder = both_fleets, Failing(3), Recorder()
    fleet.append(5)
    fleet.start(
        fleet.worker(fleet.see("failing", check=failing, max_attempts=3), fleet.see("other"), telemetry=recorder)
    )
    fleet.wait(lambda: is_parked(fleet, "failing"))
    fleet.append()
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5, 6])
    found = fleet.checkpoint("failing")
    assert (found.last_position, found.failed_position, found.attempts, found.retry_at) == (2, 3, 3, None)
    assert "ZeroDivisionError: three" in found.error
    assert "while consumer 'failing' handled PersistedEvent(global_position=3" in found.error
    fleet.wait(lambda: len(recorder.named("worker.parked")) == 1)
    told = recorder.named("worker.parked")[0]
    assert (told["consumer"], told["partition"], told["global_position"], told["attempts"]) == ("failing", 0, 3, 3)
    assert told["event_type"] == "UserRegistered"
    assert [each["attempts"] for each in recorder.named("worker.event_failed")] == [1, 2]
    parked = [record for record in caplog.records if record.message == "handler failed; partition is parked"]
    assert [(record.levelno, record.consumer, record.attempts) for record in parked] == [(logging.ERROR, "failing", 3)]
    fleet.stop()
    assert failing.attempts == 1 + 3  # the first one only showed which event to isolate


def test_it_continues_when_it_is_no_longer_parked(fleet: Fleet):
    failing, recorder = Failing(3), Recorder()
    fleet.append(5)
    worker = fleet.worker(fleet.see("failing", check=failing, max_attempts=2), telemetry=recorder)
    fleet.start(worker)
    fleet.wait(lambda: is_parked(fleet, "failing"))
    fleet.query(UNPARK, commit=True)  # too early: it is tried once, and parked again
    fleet.wait(lambda: fleet.attempts("failing") == 3 and is_parked(fleet, "failing"))
    failing.is_healed = True
    fleet.query(UNPARK, commit=True)
    fleet.wait(lambda: fleet.seen("failing") == [1, 2, 3, 4, 5])
    recovered = {"worker": str(worker.id), "consumer": "failing", "partition": 0, "failures": 3}
    fleet.wait(lambda: recorder.named("worker.recovered") == [recovered])
    found = fleet.checkpoint("failing")
    assert (found.attempts, found.failed_position, found.error, found.parked_at) == (0, None, None, None)


def test_only_the_partition_of_the_event(fleet: Fleet):
    fleet.append(20)
    fleet.start(fleet.worker(fleet.see("shared", check=Failing(3), max_attempts=1, partitions=3)))
    states = "SELECT parked_at IS NOT NULL, last_position = 20 FROM consumer_checkpoints ORDER BY 1"
    expected = [(False, True), (False, True), (True, False)]
    fleet.wait(lambda: [tuple(row) for row in fleet.query(states)] == expected)


def test_a_batch_handler_is_parked_by_the_event_and_not_by_the_search_for_it(fleet: Fleet):
    fleet.append(10)
    by_batch = fleet.see_batches("batches", check=lambda events: list(map(Failing(6), events)), max_attempts=2)
    fleet.start(fleet.worker(by_batch, fleet.see("events", check=Failing(6), max_attempts=2)))
    for name in ("batches", "events"):
        fleet.wait(lambda name=name: is_parked(fleet, name))
        found = fleet.checkpoint(name)
        assert (found.last_position, found.failed_position, found.attempts) == (5, 6, 2)


def test_a_drain_says_so(fleet: Fleet):
    fleet.append(5)
    fleet.worker(fleet.see("parked")).drain()
    fleet.query("UPDATE consumer_checkpoints SET parked_at = now(), failed_position = 6", commit=True)
    fleet.append()
    with pytest.raises(PartitionParkedError, match="partition 0 of consumer 'parked' is parked on the event at 6"):
        fleet.worker(fleet.see("parked")).drain()
    assert fleet.seen("parked") == [1, 2, 3, 4, 5]


def test_parked_by_hand(fleet: Fleet):
    """An operator parks the partition while the processor waits to retry; the processor does not retry."""
    failing = Failing(3)
    fleet.append(5)
    fleet.start(fleet.worker(fleet.see("failing", check=failing), fleet.see("other")))
    fleet.wait(lambda: fleet.attempts("failing") >= 1)
    fleet.query("UPDATE consumer_checkpoints SET parked_at = now() WHERE consumer_name = 'failing'", commit=True)
    attempts = fleet.attempts("failing")
    failing.is_healed = True
    fleet.append()
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5, 6])
    fleet.stop()
    assert fleet.seen("failing") == [1, 2]
    assert fleet.attempts("failing") == attempts
