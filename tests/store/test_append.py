"""Appending: every expectation with every outcome, in every variant of session and names."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.orm import Session

from pupsourcing_sa import (
    AnyVersion,
    DuplicateEventError,
    EventStore,
    EventTables,
    Exact,
    NoEventsError,
    NoStream,
    OptimisticConcurrencyError,
)
from pupsourcing_sa.errors import TablesMissingError
from tests.fix_store import Log, Transaction, make_event


def versions(transaction: Transaction, aggregate_id: str = "u1") -> list[int]:
    return [event.aggregate_version for event in transaction.read_aggregate_stream("User", aggregate_id)]


class TestOutcomes:
    @pytest.mark.parametrize("expected", [NoStream(), Exact(0), AnyVersion()], ids=repr)
    def test_a_new_aggregate(self, log: Log, expected):
        transaction = log.begin()
        result = transaction.append(expected, [make_event(), make_event()])
        assert (result.from_version, result.to_version) == (0, 2)
        assert result.global_positions == (1, 2)
        assert versions(transaction) == [1, 2]

    @pytest.mark.parametrize("expected", [Exact(2), AnyVersion()], ids=repr)
    def test_an_existing_aggregate(self, log: Log, expected):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event(), make_event()])
        result = transaction.append(expected, [make_event()])
        assert (result.from_version, result.to_version) == (2, 3)
        assert versions(transaction) == [1, 2, 3]

    @pytest.mark.parametrize("expected", [NoStream(), Exact(0), Exact(1), Exact(3)], ids=repr)
    def test_a_conflict_on_an_existing_aggregate(self, log: Log, expected):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event(), make_event()])
        with pytest.raises(OptimisticConcurrencyError) as caught:
            transaction.append(expected, [make_event()])
        assert caught.value.aggregate_type == "User"
        assert caught.value.aggregate_id == "u1"
        assert caught.value.expected == expected
        assert caught.value.actual == 2
        # The transaction goes on as if nothing had happened.
        transaction.append(Exact(2), [make_event()])
        transaction.commit()
        assert versions(log.begin()) == [1, 2, 3]

    def test_a_conflict_on_an_aggregate_that_does_not_exist(self, log: Log):
        transaction = log.begin()
        with pytest.raises(OptimisticConcurrencyError) as caught:
            transaction.append(Exact(1), [make_event()])
        assert caught.value.actual == 0
        assert "'u1'" in str(caught.value)
        assert "Exact(1)" in str(caught.value)
        transaction.append(NoStream(), [make_event()])
        assert versions(transaction) == [1]

    def test_aggregates_of_one_id_and_several_types_are_several(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event("1")])
        transaction.append(NoStream(), [make_event("1", aggregate_type="Order")])
        assert transaction.read_aggregate_stream("Order", "1").version == 1


class TestTransactions:
    def test_the_append_is_committed_by_the_caller(self, log: Log):
        transaction, other = log.begin(), log.begin()
        transaction.append(NoStream(), [make_event()])
        assert versions(other) == []
        transaction.commit()
        assert versions(other) == [1]

    def test_a_rollback_leaves_nothing(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event()])
        transaction.rollback()
        assert versions(transaction) == []
        assert transaction.append(NoStream(), [make_event()]).global_positions == (2,)

    def test_a_rollback_to_a_savepoint_undoes_what_came_after_it(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event()])
        with pytest.raises(ZeroDivisionError), transaction.savepoint():
            transaction.append(Exact(1), [make_event()])
            raise ZeroDivisionError
        assert transaction.append(Exact(1), [make_event()]).to_version == 2
        transaction.commit()
        assert versions(transaction) == [1, 2]

    def test_nothing_is_begun_flushed_or_committed(self, engine, plain_log: Log):
        seen: list[str] = []
        with Session(engine) as session:
            for name in ("after_begin", "before_flush", "before_commit", "after_rollback"):
                sqlalchemy_event.listen(session, name, lambda *_, name=name: seen.append(name))
            plain_log.store.append(session, NoStream(), [make_event()])
            with pytest.raises(OptimisticConcurrencyError):
                plain_log.store.append(session, NoStream(), [make_event()])
            assert seen == ["after_begin"]  # the session's own autobegin

    def test_one_round_trip_for_any_number_of_events(self, engine, plain_log: Log):
        statements: list[str] = []
        sqlalchemy_event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        transaction = plain_log.begin()
        transaction.append(NoStream(), [make_event()])
        transaction.append(NoStream(), [make_event("u2") for _ in range(500)])
        assert len(statements) == 2
        assert len(set(statements)) == 1, "the text must not depend on the number of events"

    def test_one_lock_for_any_number_of_appends(self, plain_log: Log):
        transaction = plain_log.begin()
        for number in range(50):
            transaction.append(NoStream(), [make_event(f"u{number}")])
        assert transaction.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(1,)]

    def test_a_committed_append_leaves_no_lock(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event()])
        transaction.commit()
        assert transaction.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
        transaction.append(Exact(1), [make_event()])  # on the same connection: it takes a mark again
        assert transaction.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(1,)]


class TestRaces:
    @pytest.mark.parametrize("expected", [NoStream(), Exact(1)], ids=repr)
    def test_exactly_one_of_fifty_writers_wins(self, engine, plain_log: Log, expected):
        if expected == Exact(1):
            transaction = plain_log.begin()
            transaction.append(NoStream(), [make_event()])
            transaction.commit()
        outcomes = self.race(engine, plain_log.store, expected, 50)
        assert outcomes.count("won") == 1
        assert outcomes.count("lost") == 49
        assert versions(plain_log.begin()) == list(range(1, (expected.version or 0) + 2))

    def test_every_writer_wins_with_any_version(self, engine, plain_log: Log):
        assert self.race(engine, plain_log.store, AnyVersion(), 50) == ["won"] * 50
        assert versions(plain_log.begin()) == list(range(1, 51))

    @staticmethod
    def race(engine, store: EventStore, expected, writers: int) -> list[str]:
        outcomes: list[str] = []
        start = threading.Barrier(10)

        def write() -> None:
            start.wait()
            for _ in range(writers // 10):
                with Session(engine) as session:
                    try:
                        store.append(session, expected, [make_event()])
                        session.commit()
                        outcomes.append("won")
                    except OptimisticConcurrencyError as error:
                        assert error.actual == (expected.version or 0) + 1
                        outcomes.append("lost")

        threads = [threading.Thread(target=write) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    @pytest.mark.parametrize("expected", [NoStream(), Exact(1), AnyVersion()], ids=repr)
    def test_a_lost_race_under_a_snapshot_is_a_conflict(self, engine, plain_log: Log, level, expected):
        store = plain_log.store
        if expected != NoStream():
            with Session(engine) as session:
                store.append(session, NoStream(), [make_event()])
                session.commit()
        with Session(engine) as slow, Session(engine) as fast:
            slow.connection(execution_options={"isolation_level": level})
            slow.execute(text("SELECT 1"))  # takes the snapshot
            store.append(fast, expected, [make_event()])
            fast.commit()
            with pytest.raises(OptimisticConcurrencyError) as caught:
                store.append(slow, expected, [make_event()])
            assert caught.value.actual is None
            assert caught.value.__cause__.orig.sqlstate == "40001"


class TestRefusals:
    def test_an_event_id_in_the_log(self, log: Log):
        transaction = log.begin()
        first, second = make_event(), make_event()
        transaction.append(NoStream(), [first])
        transaction.commit()
        with pytest.raises(DuplicateEventError) as caught:
            transaction.append(AnyVersion(), [second, make_event(event_id=first.event_id)])
        assert caught.value.event_ids == (first.event_id,)
        transaction.rollback()
        assert versions(transaction) == [1]

    def test_an_event_id_twice_in_one_append(self, log: Log):
        transaction = log.begin()
        one, two = make_event(), make_event()
        with pytest.raises(DuplicateEventError) as caught:
            transaction.append(NoStream(), [one, two, make_event(event_id=one.event_id)])
        assert caught.value.event_ids == (one.event_id,)
        assert versions(transaction) == []

    def test_no_events(self, log: Log):
        with pytest.raises(NoEventsError):
            log.begin().append(NoStream(), [])

    def test_several_aggregates(self, log: Log):
        with pytest.raises(ValueError, match="User 'u1' and User 'u2'"):
            log.begin().append(NoStream(), [make_event("u1"), make_event("u2")])

    @pytest.mark.parametrize(
        ("expected", "events", "message"),
        [
            (NoStream, [make_event()], r"expected_version .* write NoStream\(\)"),
            (3, [make_event()], "expected_version .* not int"),
            (NoStream(), make_event(), r"\[event\]"),
            (NoStream(), ["event"], "events must contain Event only, not str"),
            (NoStream(), 5, "events must be a sequence of Event, not int"),
        ],
    )
    def test_wrong_types(self, log: Log, expected, events, message):
        with pytest.raises(TypeError, match=message):
            log.begin().append(expected, events)

    def test_wrong_sessions(self, engine, plain_log: Log):
        with pytest.raises(TypeError, match=r"session must be a Session .* not Engine; use engine.begin"):
            plain_log.store.append(engine, NoStream(), [make_event()])

    def test_missing_tables(self, engine):
        store = EventStore(EventTables(schema="nowhere"))
        with Session(engine) as session:
            with pytest.raises(TablesMissingError, match="nowhere.events.*run your migrations"):
                store.append(session, NoStream(), [make_event()])
            session.rollback()
            with pytest.raises(TablesMissingError, match="nowhere.events"):
                store.read_aggregate_stream(session, "User", "u1")


def test_notify_is_sent_with_the_commit(engine, plain_log: Log):
    store = EventStore(plain_log.tables, notify_channel="Events of the shop")
    with engine.connect() as connection, Session(engine) as session:
        connection.execute(text('LISTEN "Events of the shop"'))
        connection.commit()
        store.append(session, AnyVersion(), [make_event()])
        store.append(session, AnyVersion(), [make_event()])
        listener = connection.connection.driver_connection
        assert list(listener.notifies(timeout=0)) == []
        session.commit()
        (notification,) = listener.notifies(timeout=5, stop_after=1)
        assert (notification.channel, notification.payload) == ("Events of the shop", "")
