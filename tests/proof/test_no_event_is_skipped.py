"""A follower of the stable position sees every committed event once, in order, whatever writers do.

As a control, a follower of ``global_position > last`` on the same writers misses events.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, NoStream
from tests.fix_store import ids, make_event

WRITERS = 8
TRANSACTIONS = 60  # of each writer


#: Returns the positions and aggregates (id, version) of the next page after a position.
Read = Callable[[Session, int], list[tuple[int, str, int]]]


def read_stable(store: EventStore) -> Read:
    def read(session: Session, last: int) -> list[tuple[int, str, int]]:
        page = store.read_events(session, after=last, limit=50)
        return [(event.global_position, event.aggregate_id, event.aggregate_version) for event in page]

    return read


def read_naively(tables: EventTables) -> Read:
    """Read like a naive follower."""
    c = tables.events.c

    def read(session: Session, last: int) -> list[tuple[int, str, int]]:
        page = select(c.global_position, c.aggregate_id, c.aggregate_version).where(c.global_position > last)
        return [tuple(row) for row in session.execute(page.order_by(c.global_position).limit(50))]

    return read


class Follower(threading.Thread):
    """A follower that reads page after page until `stop`, and then to the end."""

    def __init__(self, engine: Engine, read: Read) -> None:
        super().__init__()
        self.seen: list[tuple[int, str, int]] = []
        self._engine = engine
        self._read = read
        self._is_stopping = threading.Event()

    def run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_stopping.is_set()
            with Session(self._engine) as session:
                while page := self._read(session, self.seen[-1][0] if self.seen else 0):
                    self.seen += page
                    session.rollback()

    def stop(self) -> None:
        self._is_stopping.set()
        self.join()


class Undone(Exception):
    pass


def write(engine: Engine, store: EventStore, chance: random.Random, transactions: int) -> None:
    """Run short and long transactions with one or several appends, savepoints and rollbacks."""
    for _ in range(transactions):
        with Session(engine) as session:
            # In one order, so that the writers do not deadlock over the aggregates they share.
            for aggregate in sorted(chance.sample(range(40), k=chance.choice([1, 1, 2, 3]))):
                events = [make_event(str(aggregate)) for _ in range(chance.choice([1, 1, 2, 5]))]
                if chance.random() < 0.7:
                    store.append(session, AnyVersion(), events)
                    continue
                try:
                    with session.begin_nested():
                        store.append(session, AnyVersion(), events)
                        if chance.random() < 0.5:
                            raise Undone
                except Undone:
                    pass
            if chance.random() < 0.4:
                time.sleep(chance.uniform(0, 0.01))
            if chance.random() < 0.2:
                session.rollback()
            else:
                session.commit()


@pytest.mark.parametrize(
    "first_position", [1, 2**31 - 300, 2**32 - 300, 2**33 + 2**30], ids=["1", "2^31", "2^32", "2^33+2^30"]
)
def test_under_load(engine: Engine, store: EventStore, first_position: int):
    """At the later starts the 31 bits of a low-water mark wrap around, or no position was issued before."""
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE events ALTER COLUMN global_position RESTART WITH {first_position}"))
    followers = [Follower(engine, read_stable(store)) for _ in range(2)]
    naive = Follower(engine, read_naively(store.tables))
    writers = [
        threading.Thread(target=write, args=(engine, store, random.Random(number), TRANSACTIONS))
        for number in range(WRITERS)
    ]
    for thread in (*followers, naive, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    for follower in (*followers, naive):
        follower.stop()

    with engine.connect() as connection:  # an independent query
        committed = [
            tuple(row)
            for row in connection.execute(
                text("SELECT global_position, aggregate_id, aggregate_version FROM events ORDER BY global_position")
            )
        ]
    assert committed[0][0] >= first_position
    for follower in followers:
        assert follower.seen == committed  # every event, once and in order
    versions = defaultdict(list)
    for _, aggregate, version in followers[0].seen:
        versions[aggregate].append(version)
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
    assert len(naive.seen) < len(committed), "these writers do not do what breaks a naive follower"


class TestLateCommit:
    """The smallest case: two transactions commit in the opposite order of their appends."""

    @pytest.fixture
    def early(self, engine: Engine, store: EventStore):
        """The transaction that appended first and is still open after the second has committed."""
        with Session(engine) as early, Session(engine) as late:
            store.append(early, NoStream(), [make_event("early")])
            store.append(late, NoStream(), [make_event("late")])
            late.commit()
            yield early

    def test_the_naive_follower_skips_it(self, engine: Engine, store: EventStore, early: Session):
        naive = read_naively(store.tables)
        with Session(engine) as session:
            (seen,) = naive(session, 0)
            assert seen[1] == "late"
            early.commit()
            session.rollback()
            assert naive(session, seen[0]) == []

    def test_the_stable_follower_waits_for_it(self, engine: Engine, store: EventStore, early: Session):
        with Session(engine) as session:
            assert store.read_events(session) == []
            early.commit()
            session.rollback()
            assert ids(store, session) == ["early", "late"]

    def test_a_rollback_lets_the_stable_follower_go_on(self, engine: Engine, store: EventStore, early: Session):
        early.rollback()
        with Session(engine) as session:
            assert ids(store, session) == ["late"]

    def test_a_rollback_to_a_savepoint_before_the_first_append_does_so_too(self, engine: Engine, store: EventStore):
        with Session(engine) as early, Session(engine) as session:
            savepoint = early.begin_nested()
            store.append(early, NoStream(), [make_event("early")])
            with Session(engine) as late:
                store.append(late, NoStream(), [make_event("late")])
                late.commit()
            assert store.read_events(session) == []
            savepoint.rollback()
            session.rollback()
            assert ids(store, session) == ["late"]
            store.append(early, NoStream(), [make_event("early")])  # it needs a mark again
            assert store.stable_position(session) == 2
            early.commit()
            assert store.stable_position(session) == 3

    def test_a_transaction_that_does_not_append_holds_up_nothing(self, engine: Engine, store: EventStore):
        with Session(engine) as idle, Session(engine) as session:
            idle.execute(text("CREATE TABLE work (); SELECT txid_current()"))  # has a transaction id and writes
            store.append(session, NoStream(), [make_event()])
            session.commit()
            assert len(store.read_events(session)) == 1

    def test_appends_to_different_aggregates_do_not_wait_for_one_another(self, engine: Engine, store: EventStore):
        with Session(engine) as open_transaction, Session(engine) as session:
            store.append(open_transaction, NoStream(), [make_event("u1")])
            session.execute(text("SET lock_timeout = '1ms'"))
            store.append(session, NoStream(), [make_event("u2")])
            session.commit()


class TestStablePosition:
    def test_an_empty_log(self, engine: Engine, store: EventStore):
        with Session(engine) as session:
            assert store.stable_position(session) == 0
            assert store.latest_global_position(session) == 0

    def test_it_lies_above_positions_that_were_rolled_back_once_one_is_committed(
        self, engine: Engine, store: EventStore
    ):
        with Session(engine) as session:
            store.append(session, NoStream(), [make_event(), make_event()])
            session.rollback()
            # After a crash the sequence may issue them again.
            assert store.stable_position(session) == 0
            assert store.read_events(session) == []
            store.append(session, NoStream(), [make_event()])
            session.commit()
            assert store.stable_position(session) == 3

    def test_a_prepared_transaction_holds_it(self, engine: Engine, store: EventStore):
        with engine.connect() as connection:
            transaction = connection.begin_twophase("held")
            store.append(connection, NoStream(), [make_event()])
            transaction.prepare()
            with Session(engine) as session:
                store.append(session, NoStream(), [make_event("u2")])
                session.commit()
                assert store.read_events(session) == []
                transaction.commit()
                session.rollback()
                assert len(store.read_events(session)) == 2

    def test_the_locks_of_other_logs_do_not_count(self, engine: Engine, store: EventStore):
        tables = EventTables(schema=None, events="other_events", aggregate_heads="other_heads")
        tables.metadata.create_all(engine)
        other = EventStore(tables)
        with Session(engine) as session, Session(engine) as appending:
            other.append(appending, NoStream(), [make_event()])
            store.append(session, NoStream(), [make_event()])
            session.commit()
            assert store.stable_position(session) == 1
            assert other.stable_position(session) == 0
            store.append(appending, NoStream(), [make_event("u2")])  # both in one transaction
            assert store.stable_position(session) == 1
            appending.commit()
            assert (store.stable_position(session), other.stable_position(session)) == (2, 1)

    @pytest.mark.parametrize(
        "restart", ["SELECT setval('{sequence}', {to}, true)", "SELECT setval('{sequence}', {to} + 1, false)"]
    )
    def test_a_sequence_that_jumps_by_more_than_a_mark_can_tell(self, engine: Engine, store: EventStore, restart: str):
        """This happens in a restore. The sequence may report that it was used, or that it was not."""
        with Session(engine) as session, Session(engine) as late:
            store.append(session, NoStream(), [make_event("before")])
            session.commit()
            sequence = session.scalar(text("SELECT pg_get_serial_sequence('events', 'global_position')"))
            session.execute(text(restart.format(sequence=sequence, to=2**31 + 2**30 + 5)))
            session.commit()
            assert ids(store, session) == ["before"]
            store.append(session, NoStream(), [make_event("early")])
            store.append(late, NoStream(), [make_event("late")])
            late.commit()
            assert ids(store, late) in ([], ["before"])
            session.commit()
            late.rollback()
            assert ids(store, late) == ["before", "early", "late"]
