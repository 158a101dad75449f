"""``append(..., idempotent=True)``, for a caller that does not know if its commit succeeded."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, DuplicateEventError, Exact, NoStream, OptimisticConcurrencyError
from tests.fix_store import Log, make_event, wait_until_blocked

EXPECTATIONS = pytest.mark.parametrize("expected", [NoStream(), AnyVersion(), Exact(2)], ids=repr)


@pytest.fixture
def two():
    return [make_event(metadata={"b": 1, "a": 2}), make_event(payload=b"\x00")]


def prepare(log: Log, expected) -> None:
    if expected == Exact(2):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event(), make_event()])
        transaction.commit()


@EXPECTATIONS
def test_the_first_time_it_appends(log: Log, two, expected):
    prepare(log, expected)
    result = log.begin().append(expected, two, idempotent=True)
    assert result.to_version - result.from_version == 2


@EXPECTATIONS
def test_again_it_gives_the_first_result(log: Log, two, expected):
    prepare(log, expected)
    transaction = log.begin()
    first = transaction.append(expected, two)
    transaction.commit()
    transaction.append(AnyVersion(), [make_event()])  # even after later appends
    again = transaction.append(expected, two, idempotent=True)
    assert (again.global_positions, again.from_version, again.to_version) == (
        first.global_positions,
        first.from_version,
        first.to_version,
    )
    assert (again, hash(again)) == (first, hash(first))
    transaction.commit()
    assert log.heads() == {"u1": first.to_version + 1}


def test_events_that_were_built_again_are_the_same(log: Log):
    ids = [make_event().event_id for _ in range(2)]
    transaction = log.begin()
    first = transaction.append(NoStream(), [make_event(event_id=each, trace_id="first") for each in ids])
    again = [make_event(event_id=each, created_at=datetime(2027, 1, 1, tzinfo=UTC)) for each in ids]
    assert transaction.append(NoStream(), again, idempotent=True).global_positions == first.global_positions


@pytest.mark.parametrize(
    "change",
    [
        lambda one, two: [two, one],
        lambda one, two: [one, two, make_event()],
        lambda one, two: [one, make_event(event_id=two.event_id, payload=b"other")],
        lambda one, two: [one, make_event(event_id=two.event_id, payload=two.payload, event_type="Other")],
        lambda one, two: [one, make_event(event_id=two.event_id, payload=two.payload, metadata={"by": "other"})],
        lambda one, two: [make_event("u2", event_id=each.event_id, payload=each.payload) for each in (one, two)],
    ],
    ids=["order", "more", "payload", "type", "metadata", "aggregate"],
)
@pytest.mark.parametrize("expected", [NoStream(), AnyVersion()], ids=repr)
def test_anything_else_is_a_duplicate(log: Log, two, change, expected):
    transaction = log.begin()
    transaction.append(NoStream(), two)
    transaction.commit()
    events = change(*two)
    with pytest.raises(DuplicateEventError) as caught:
        transaction.append(expected, events, idempotent=True)
    assert set(caught.value.event_ids) == {event.event_id for event in events} & {event.event_id for event in two}
    transaction.append(Exact(2), [make_event()])  # the transaction stays usable
    transaction.commit()
    assert log.heads() == {"u1": 3}


def test_a_part_and_the_whole_of_earlier_appends_are_found(log: Log, two):
    """The log has the events, in this order; which append wrote them does not matter."""
    transaction = log.begin()
    first = transaction.append(NoStream(), two)
    second = transaction.append(Exact(2), [third := make_event()])
    transaction.commit()
    part = transaction.append(NoStream(), two[1:], idempotent=True)
    assert (part.global_positions, part.from_version, part.to_version) == (first.global_positions[1:], 1, 2)
    whole = transaction.append(NoStream(), [*two, third], idempotent=True)
    assert whole.global_positions == first.global_positions + second.global_positions
    assert (whole.from_version, whole.to_version) == (0, 3)


def test_events_that_are_not_consecutive_are_duplicates(log: Log, two):
    transaction = log.begin()
    transaction.append(NoStream(), [two[0], make_event(), two[1]])
    with pytest.raises(DuplicateEventError):
        transaction.append(NoStream(), two, idempotent=True)


def test_content_is_compared_as_jsonb_sees_it(log: Log):
    event = make_event(metadata={"float": 1.2345678901234567e17, "flag": True})
    transaction = log.begin()
    first = transaction.append(NoStream(), [event])
    again = transaction.append(NoStream(), [event], idempotent=True)
    assert again.global_positions == first.global_positions
    other = make_event(event_id=event.event_id, metadata={"float": 1.2345678901234567e17, "flag": 1})
    with pytest.raises(DuplicateEventError):
        transaction.append(NoStream(), [other], idempotent=True)


def test_the_result_has_the_events_of_the_log(log: Log):
    event = make_event(trace_id="first")
    transaction = log.begin()
    transaction.append(NoStream(), [event])
    again = transaction.append(NoStream(), [make_event(event_id=event.event_id, trace_id="second")], idempotent=True)
    assert again.events == transaction.read_aggregate_stream("User", "u1").events
    assert again.events[0].trace_id == "first"


def test_a_conflict_is_still_a_conflict(log: Log, two):
    transaction = log.begin()
    transaction.append(NoStream(), [make_event()])
    with pytest.raises(OptimisticConcurrencyError) as caught:
        transaction.append(NoStream(), two, idempotent=True)
    assert caught.value.actual == 1


@pytest.mark.parametrize("expected", [NoStream(), AnyVersion()], ids=repr)
@pytest.mark.parametrize("first_commits", [True, False])
def test_the_first_attempt_may_still_be_in_flight(engine, plain_log: Log, two, expected, first_commits):
    """The caller lost its connection. The server will commit or roll back the first attempt."""
    store = plain_log.store
    with Session(engine) as first, Session(engine) as second:
        original = store.append(first, expected, two)
        pid = second.connection().connection.driver_connection.info.backend_pid
        results = []
        thread = threading.Thread(
            target=lambda: results.append(store.append(second, expected, two, idempotent=True)), daemon=True
        )
        thread.start()
        wait_until_blocked(engine, pid)
        if first_commits:
            first.commit()
        else:
            first.rollback()
        thread.join()
        second.commit()
    assert (results[0].global_positions == original.global_positions) is first_commits
    assert plain_log.heads() == {"u1": 2}


def test_without_asking_nothing_is_paid(plain_log: Log, statements: list[str]):
    plain_log.begin().append(NoStream(), [make_event()])
    assert len(statements) == 1
