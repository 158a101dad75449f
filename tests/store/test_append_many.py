"""Appending to several aggregates at once: all or none, without deadlocks."""

from __future__ import annotations

import random
import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import (
    AnyVersion,
    DuplicateEventError,
    Exact,
    NoEventsError,
    NoStream,
    OptimisticConcurrencyError,
)
from tests.fix_store import Log, make_event, wait_until_blocked


def test_each_aggregate_has_its_own_expectation(log: Log):
    transaction = log.begin()
    transaction.append(NoStream(), [make_event("b"), make_event("b")])
    results = transaction.append_many(
        [
            (AnyVersion(), [make_event("z"), make_event("z")]),
            (Exact(2), [make_event("b")]),
            (NoStream(), [make_event("a")]),
            (AnyVersion(), [make_event("b", aggregate_type="Order")]),
        ]
    )
    assert [(result.from_version, result.to_version) for result in results] == [(0, 2), (2, 3), (0, 1), (0, 1)]
    # Positions follow the order of the call, not the order of the locks.
    assert [result.global_positions for result in results] == [(3, 4), (5,), (6,), (7,)]
    assert [event.aggregate_version for event in results[0].events] == [1, 2]
    transaction.commit()
    with log.engine.connect() as connection:
        rows = connection.execute(log.tables.events.select().order_by(log.tables.events.c.global_position)).all()
    found = [(row.aggregate_type, row.aggregate_id, row.aggregate_version) for row in rows]
    assert found[2:] == [("User", "z", 1), ("User", "z", 2), ("User", "b", 3), ("User", "a", 1), ("Order", "b", 1)]
    assert [row.event_id for row in rows[2:]] == [event.event_id for result in results for event in result.events]


@pytest.mark.parametrize(
    ("appends", "failed", "actual"),
    [
        ({"new": NoStream(), "old": NoStream()}, "old", 2),
        ({"new": NoStream(), "old": Exact(1)}, "old", 2),
        ({"old": Exact(2), "new": Exact(3)}, "new", 0),
        ({"any": AnyVersion(), "old": Exact(5), "new": Exact(1)}, "old", 2),
    ],
)
def test_a_conflict_names_the_aggregate_and_leaves_nothing(log: Log, appends, failed, actual):
    transaction = log.begin()
    transaction.append(NoStream(), [make_event("old"), make_event("old")])
    with pytest.raises(OptimisticConcurrencyError) as caught:
        transaction.append_many([(expected, [make_event(name)]) for name, expected in appends.items()])
    assert (caught.value.aggregate_id, caught.value.actual) == (failed, actual)
    assert caught.value.expected == appends[failed]
    transaction.append(Exact(2), [make_event("old")])  # the transaction stays usable
    transaction.commit()
    assert log.heads() == {"old": 3}


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "a", "b"]])
def test_a_race_that_is_lost_in_the_middle_leaves_nothing(engine, plain_log: Log, names):
    """The snapshot shows no conflict. The transaction that the append waits for causes one."""
    store = plain_log.store
    with Session(engine) as session:
        store.append(session, NoStream(), [make_event("a")])
        session.commit()
    with Session(engine) as fast, Session(engine) as slow:
        store.append(fast, NoStream(), [make_event("b")])
        caught: list[Exception] = []
        pid = slow.scalar(text("SELECT pg_backend_pid()"))

        def append() -> None:
            expected = {"a": AnyVersion(), "b": NoStream(), "c": NoStream()}
            try:
                store.append_many(slow, [(expected[name], [make_event(name)] * 1) for name in names])
            except OptimisticConcurrencyError as error:
                caught.append(error)

        thread = threading.Thread(target=append)
        thread.start()
        wait_until_blocked(engine, pid)
        fast.commit()
        thread.join()
        assert [(error.aggregate_id, error.actual) for error in caught] == [("b", 1)]
        store.append(slow, Exact(1), [make_event("b")])  # the transaction stays usable, and its writes are undone
        slow.commit()
    assert plain_log.heads() == {"a": 1, "b": 2}


def test_one_round_trip(plain_log: Log, statements: list[str]):
    transaction = plain_log.begin()
    transaction.append_many([(NoStream(), [make_event("a")])])
    transaction.append_many([(AnyVersion(), [make_event(f"{number}")] * 1) for number in range(50)])
    assert len(statements) == 2
    assert len(set(statements)) == 1


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_no_deadlock_and_nothing_lost_whatever_the_order(engine, plain_log: Log, level: str):
    """New and existing aggregates, in every order: each writer succeeds or gets a conflict."""
    store, outcomes = plain_log.store, []
    at_level = engine.execution_options(isolation_level=level)

    def write(chance: random.Random) -> None:
        for _ in range(40):
            names = chance.sample([f"u{number}" for number in range(25)], k=5)
            expected = chance.choice([AnyVersion(), AnyVersion(), NoStream()])
            with Session(at_level) as session:
                try:
                    store.append_many(session, [(expected, [make_event(name)] * 1) for name in names])
                    time.sleep(chance.uniform(0, 0.002))
                    session.commit()
                    outcomes.append("won")
                except OptimisticConcurrencyError as error:
                    if error.actual is None:
                        assert level != "READ COMMITTED"
                    else:
                        session.commit()  # of nothing
                    outcomes.append("lost")
                except OperationalError as error:  # at the commit, under SERIALIZABLE
                    assert (level, error.orig.sqlstate) == ("SERIALIZABLE", "40001")
                    outcomes.append("lost")

    threads = [threading.Thread(target=write, args=(random.Random(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8 * 40, "a writer failed with something else, such as a deadlock"
    assert "won" in outcomes
    with engine.connect() as connection:
        counted = text("SELECT aggregate_id, count(*), max(aggregate_version) FROM events GROUP BY aggregate_id")
        found = {row[0]: (row[1], row[2]) for row in connection.execute(counted)}
    assert found == {name: (version, version) for name, version in plain_log.heads().items()}
    assert sum(count for count, _ in found.values()) == 5 * outcomes.count("won")


def test_bad_input(plain_log: Log):
    transaction = plain_log.begin()
    event = make_event()
    for appends, error, message in [
        ([], NoEventsError, "at least one event"),
        ([(NoStream(), [])], NoEventsError, "at least one event"),
        (
            [(NoStream(), [event]), (NoStream(), [make_event("u2", event_id=event.event_id)])],
            DuplicateEventError,
            "must be unique",
        ),
        ([(NoStream(), [make_event("a"), make_event("b")])], ValueError, "of one aggregate"),
        ([NoStream(), [event]], TypeError, r"tuples \(expected_version, events\)"),
        ([([event], NoStream())], TypeError, "expected_version must be"),
    ]:
        with pytest.raises(error, match=message):
            transaction.append_many(appends)
    assert plain_log.heads() == {}


def test_an_event_id_in_the_log(log: Log):
    transaction = log.begin()
    (result,) = transaction.append_many([(NoStream(), [make_event()])])
    transaction.commit()
    again = make_event("u3", event_id=result.events[0].event_id)
    with pytest.raises(DuplicateEventError) as caught:
        transaction.append_many([(NoStream(), [make_event("u2")]), (NoStream(), [again])])
    assert caught.value.event_ids == (again.event_id,)
    transaction.rollback()
    assert log.heads() == {"u1": 1}
