"""Appending: every expectation with every outcome, in every variant of session and names."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.schema import AddConstraint, DropConstraint

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
from pupsourcing_sa.errors import StaleHeadsError, TablesMissingError
from tests.fix_store import Log, Transaction, make_event
from tests.waiting import patiently

#: The marks of the current transaction.
OURS = "locktype = 'advisory' AND pid = pg_backend_pid()"


def versions(transaction: Transaction, aggregate_id: str = "u1") -> list[int]:
    return [event.aggregate_version for event in transaction.read_aggregate_stream("User", aggregate_id)]


class TestOutcomes:
    def test_a_new_aggregate(self, log: Log):
        for expected in (NoStream(), Exact(0), AnyVersion()):
            transaction = log.begin()
            result = transaction.append(expected, [make_event(), make_event()])
            assert (result.from_version, result.to_version) == (0, 2)
            first, second = result.global_positions
            assert second == first + 1
            assert versions(transaction) == [1, 2]
            transaction.rollback()

    def test_an_existing_aggregate(self, log: Log):
        for expected in (Exact(2), AnyVersion()):
            transaction = log.begin()
            transaction.append(NoStream(), [make_event(), make_event()])
            result = transaction.append(expected, [make_event()])
            assert (result.from_version, result.to_version) == (2, 3)
            assert versions(transaction) == [1, 2, 3]
            transaction.rollback()

    def test_a_conflict_on_an_existing_aggregate(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event(), make_event()])
        for expected in (NoStream(), Exact(0), Exact(1), Exact(3)):
            with pytest.raises(OptimisticConcurrencyError) as caught:
                transaction.append(expected, [make_event()])
            assert caught.value.aggregate_type == "User"
            assert caught.value.aggregate_id == "u1"
            assert caught.value.expected == expected
            assert caught.value.actual == 2
        # The transaction stays usable.
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
            assert seen == ["after_begin"]  # by the session's autobegin

    def test_one_round_trip_for_any_number_of_events(self, plain_log: Log, statements: list[str]):
        transaction = plain_log.begin()
        transaction.append(NoStream(), [make_event()])
        transaction.append(NoStream(), [make_event("u2") for _ in range(500)])
        assert len(statements) == 2
        assert len(set(statements)) == 1, "the text must not depend on the number of events"

    def test_one_lock_for_any_number_of_appends(self, plain_log: Log):
        transaction = plain_log.begin()
        for number in range(50):
            transaction.append(NoStream(), [make_event(f"u{number}")])
        assert transaction.execute(f"SELECT count(*) FROM pg_locks WHERE {OURS}") == [(1,)]

    def test_a_committed_append_leaves_no_lock(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event()])
        transaction.commit()
        assert transaction.execute(f"SELECT count(*) FROM pg_locks WHERE {OURS}") == [(0,)]
        transaction.append(Exact(1), [make_event()])  # on the same connection; it takes another mark
        assert transaction.execute(f"SELECT count(*) FROM pg_locks WHERE {OURS}") == [(1,)]


class TestRaces:
    @pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
    @pytest.mark.parametrize("expected", [NoStream(), Exact(1)], ids=repr)
    def test_exactly_one_of_fifty_writers_wins(self, engine, plain_log: Log, expected, level):
        if expected == Exact(1):
            transaction = plain_log.begin()
            transaction.append(NoStream(), [make_event()])
            transaction.commit()
        found = self.race(engine, plain_log.store, expected, level)
        assert found.count("won") == 1
        # A writer that began after the winner's commit sees its version. Under READ COMMITTED, so does one that waited
        # for it.
        seen, unseen = found.count((expected.version or 0) + 1), found.count(None)
        assert seen + unseen == 49
        assert unseen == 0 or level != "READ COMMITTED"
        assert versions(plain_log.begin()) == list(range(1, (expected.version or 0) + 2))

    @pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
    def test_every_writer_wins_with_any_version(self, engine, plain_log: Log, level):
        found = self.race(engine, plain_log.store, AnyVersion(), level)
        assert found.count("won") == 50
        if level == "READ COMMITTED":
            assert len(found) == 50, "nobody had to try again"
        assert versions(plain_log.begin()) == list(range(1, 51))

    @staticmethod
    def race(engine, store: EventStore, expected, level: str) -> list[str | int | None]:
        """Return the results of fifty writers: "won", or the reported version. With AnyVersion() they continue."""
        found: list[str | int | None] = []
        start = threading.Barrier(10)
        engine = engine.execution_options(isolation_level=level)

        def write() -> bool:
            with Session(engine) as session:
                try:
                    store.append(session, expected, [make_event()])
                except OptimisticConcurrencyError as error:
                    found.append(error.actual)
                    return False
                try:
                    session.commit()
                except OperationalError as error:  # under SERIALIZABLE the commit itself may fail
                    assert error.orig.sqlstate == "40001"
                    found.append(None)
                    return False
                found.append("won")
                return True

        def write_five() -> None:
            start.wait()
            for _ in range(5):
                while not write() and expected == AnyVersion():
                    pass

        with ThreadPoolExecutor(10) as threads:
            for future in [threads.submit(write_five) for _ in range(10)]:
                future.result()
        return found

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

    def test_no_events(self):
        with pytest.raises(NoEventsError):
            EventStore().append(Session(), NoStream(), [])

    def test_several_aggregates(self):
        with pytest.raises(ValueError, match="User 'u1' and User 'u2'"):
            EventStore().append(Session(), NoStream(), [make_event("u1"), make_event("u2")])

    @pytest.mark.parametrize(
        ("expected", "events", "message"),
        [
            (NoStream, [make_event()], r"expected_version .* write NoStream\(\)"),
            (3, [make_event()], "expected_version .* not int"),
            (NoStream(), make_event(), r"\[event\]"),
            (NoStream(), ["event"], "events must contain Event only, not str"),
            (NoStream(), 5, "events must be a sequence of events, not int"),
        ],
    )
    def test_wrong_types(self, expected, events, message):
        with pytest.raises(TypeError, match=message):
            EventStore().append(Session(), expected, events)

    def test_wrong_sessions(self):
        engine: Any = create_engine("postgresql+psycopg://")
        with pytest.raises(TypeError, match=r"session must be a Session .* not Engine; use engine.begin"):
            EventStore().append(engine, NoStream(), [make_event()])

    def test_missing_tables(self, engine):
        store = EventStore(EventTables(schema="nowhere"))
        with Session(engine) as session:
            with pytest.raises(TablesMissingError, match="nowhere.events.*run your migrations"):
                store.append(session, NoStream(), [make_event()])
            session.rollback()
            with pytest.raises(TablesMissingError, match="nowhere.events"):
                store.read_aggregate_stream(session, "User", "u1")


class TestHeadsThatDoNotKnowTheLog:
    """The heads are missing after a restore, or older than the log."""

    @pytest.mark.parametrize(
        ("left", "expected"),
        [(0, NoStream()), (0, AnyVersion()), (1, Exact(1)), (1, AnyVersion())],
        ids=repr,
    )
    @pytest.mark.parametrize("is_idempotent", [False, True])
    def test_an_append_says_so(self, log: Log, left: int, expected, is_idempotent: bool):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event(), make_event()])
        self.set_back(log, transaction, left)
        with pytest.raises(StaleHeadsError, match="events of User 'u1' that .* rebuild") as caught:
            transaction.append(expected, [make_event()], idempotent=is_idempotent)
        assert caught.value.aggregates == (("User", "u1"),)
        assert caught.value.table == log.tables.aggregate_heads.key
        assert caught.value.__cause__.orig.sqlstate == "23505"
        transaction.rollback()
        assert versions(transaction) == [1, 2]

    def test_several_appends_name_the_one(self, log: Log):
        transaction = log.begin()
        transaction.append(NoStream(), [make_event("u1"), make_event("u1")])
        transaction.append(NoStream(), [make_event("u2")])
        self.set_back(log, transaction, 0)
        appends = [(AnyVersion(), [make_event("u")]), (AnyVersion(), [make_event("u1")])]
        with pytest.raises(StaleHeadsError) as caught:
            transaction.append_many(appends)
        assert caught.value.aggregates == (("User", "u1"),)

    @pytest.mark.parametrize("is_version_checked_first", [False, True])
    def test_events_that_are_in_the_log_are_still_found_again(self, log: Log, is_version_checked_first: bool):
        """Both their ids and their versions are duplicates. PostgreSQL reports the index that was created first."""
        if is_version_checked_first:
            unique = next(each for each in log.tables.events.constraints if list(each.columns.keys()) == ["event_id"])
            with log.engine.begin() as connection:
                connection.execute(DropConstraint(unique))
                connection.execute(AddConstraint(unique))
        transaction = log.begin()
        events = [make_event()]
        result = transaction.append(NoStream(), events)
        self.set_back(log, transaction, 0)
        again = transaction.append(NoStream(), events, idempotent=True)
        assert again.global_positions == result.global_positions

    @staticmethod
    def set_back(log: Log, transaction: Transaction, left: int) -> None:
        transaction.commit()
        heads = log.tables.aggregate_heads
        with log.engine.begin() as connection:
            connection.execute(heads.update().values(aggregate_version=left) if left else heads.delete())


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
        (notification,) = listener.notifies(timeout=patiently(5), stop_after=1)
        assert (notification.channel, notification.payload) == ("Events of the shop", "")
