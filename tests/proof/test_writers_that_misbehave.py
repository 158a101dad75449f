"""No event is skipped when writers, servers and operators misbehave: killed, crashed, restored, misconfigured."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, Exact, NoStream
from pupsourcing_sa.errors import StablePositionError
from pupsourcing_sa.testing import embedded_postgres
from tests.fix_postgres import open_database
from tests.fix_store import ids, make_event, make_tables
from tests.proof.test_no_event_is_skipped import Follower, Undone, read_stable
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def own_server() -> Iterator[Engine]:
    """A server that tests may crash. Data for which no commit waits reaches its disk late."""
    with embedded_postgres(settings={"wal_writer_delay": "10s"}) as url:
        server = create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        yield server
        server.dispose()


@pytest.fixture
def own_engine(own_server: Engine) -> Iterator[Engine]:
    with open_database(own_server, pool_pre_ping=True) as engine:
        yield engine


def followed(engine: Engine, store: EventStore, *, after: int = 0) -> list[str]:
    with Session(engine) as session:
        return ids(store, session, after=after)


def pid_of(session: Session) -> int:
    return session.scalars(text("SELECT pg_backend_pid()")).one()


def append_and_commit(engine: Engine, store: EventStore, *aggregate_ids: str) -> tuple[int, ...]:
    positions: tuple[int, ...] = ()
    with Session(engine) as session:
        for each in aggregate_ids:
            positions += store.append(session, AnyVersion(), [make_event(each)]).global_positions
        session.commit()
    return positions


class TestWritersThatDie:
    @pytest.mark.parametrize("how", ["terminated", "timeout"])
    def test_idle_in_transaction(self, engine: Engine, store: EventStore, how: str):
        with Session(engine) as idle, Session(engine) as other:
            pid = pid_of(idle)
            store.append(idle, NoStream(), [make_event("idle")])
            append_and_commit(engine, store, "late")
            assert followed(engine, store) == []
            if how == "terminated":
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            else:
                idle.execute(text("SET idle_in_transaction_session_timeout = '1ms'"))
            wait_until(lambda: followed(engine, store) == ["late"])
            with pytest.raises(DBAPIError):
                idle.execute(text("SELECT 1"))

    def test_a_process_that_is_killed_in_its_transaction(self, engine: Engine, store: EventStore):
        script = """
import os, time
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from pupsourcing_sa import EventStore, NoStream
from tests.fix_store import make_event

with Session(create_engine(os.environ["DATABASE_URL"])) as session:
    EventStore().append(session, NoStream(), [make_event("killed")])
    print("appended", flush=True)
    time.sleep(600)
"""
        environment = os.environ | {"DATABASE_URL": engine.url.render_as_string(hide_password=False)}
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"appended\n"
            append_and_commit(engine, store, "late")
            assert followed(engine, store) == []
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_until(lambda: followed(engine, store) == ["late"])
        append_and_commit(engine, store, "killed")
        assert followed(engine, store) == ["late", "killed"]

    def test_an_append_that_is_cancelled_in_a_savepoint(self, engine: Engine, store: EventStore):
        with Session(engine) as holder, Session(engine) as writer:
            store.append(holder, NoStream(), [make_event("held")])
            store.append(writer, NoStream(), [make_event("kept")])
            writer.execute(text("SET LOCAL lock_timeout = '10ms'"))
            with pytest.raises(OperationalError), writer.begin_nested():
                store.append(writer, AnyVersion(), [make_event("held")])
            store.append(writer, Exact(1), [make_event("kept")])
            writer.commit()
            assert followed(engine, store) == []
            holder.rollback()
            assert followed(engine, store) == ["kept", "kept"]

    def test_settings_that_are_reset_in_the_transaction(self, engine: Engine, store: EventStore):
        with Session(engine) as writer:
            store.append(writer, NoStream(), [make_event("early")])
            append_and_commit(engine, store, "late")
            writer.execute(text("RESET ALL"))
            writer.connection().exec_driver_sql("SET search_path = " + search_path(engine))
            store.append(writer, Exact(1), [make_event("early")])
            assert followed(engine, store) == []
            writer.commit()
            assert followed(engine, store) == ["early", "late", "early"]


def search_path(engine: Engine) -> str:
    return str(engine.url.query["options"]).partition("search_path=")[2]


class TestSavepointTrees:
    def grow(self, session: Session, store: EventStore, chance: random.Random, name: str, depth: int) -> list[int]:
        """Append in and between savepoints, roll back some of them, and return the remaining positions."""
        left: list[int] = []
        for _ in range(chance.choice([1, 2, 3])):
            if depth and chance.random() < 0.7:
                with suppress(Undone), session.begin_nested():
                    inner = self.grow(session, store, chance, name, depth - 1)
                    if chance.random() < 0.5:
                        raise Undone
                    left += inner
            else:
                events = [make_event(name) for _ in range(chance.choice([1, 3]))]
                left += store.append(session, AnyVersion(), events).global_positions
        return left

    def test_while_they_are_followed(self, engine: Engine, store: EventStore):
        committed: list[int] = []

        def write(number: int) -> None:
            chance = random.Random(number)
            for _ in range(40):
                with Session(engine) as session:
                    left = self.grow(session, store, chance, f"u{number}", 3)
                    if chance.random() < 0.8:
                        session.commit()
                        committed.extend(left)

        follower = Follower(engine, read_stable(store))
        writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in (follower, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        follower.stop()
        assert len(committed) > 100
        assert [position for position, _, _ in follower.seen] == sorted(committed)


class TestCrashes:
    """The server crashes: when SIGKILL ends a backend, it discards its memory and recovers from the disk."""

    @staticmethod
    def crash(engine: Engine) -> None:
        def is_gone() -> bool:
            try:
                witness.exec_driver_sql("SELECT 1")
            except OperationalError:
                return True
            return False

        def is_back() -> bool:
            with suppress(OperationalError), engine.connect():
                return True
            return False

        with engine.connect() as connection, engine.connect() as witness:
            os.kill(connection.scalar(text("SELECT pg_backend_pid()")) or 0, signal.SIGKILL)
            wait_until(is_gone)  # the server takes a moment to notice
            connection.invalidate()
        wait_until(is_back)

    def test_what_is_prepared_is_waited_for_and_what_is_open_is_gone(self, own_engine: Engine):
        store = EventStore(make_tables(own_engine))
        connection = own_engine.connect()
        prepared = connection.begin_twophase("crash")
        store.append(connection, NoStream(), [make_event("prepared")])
        prepared.prepare()
        with Session(own_engine) as lost:
            store.append(lost, NoStream(), [make_event("lost")])
            append_and_commit(own_engine, store, "committed")
            connection.invalidate()
            self.crash(own_engine)
            assert followed(own_engine, store) == []
            lost.invalidate()
        with own_engine.connect() as connection:
            connection.commit_prepared("crash", recover=True)
        assert followed(own_engine, store) == ["prepared", "committed"]
        append_and_commit(own_engine, store, "lost", "later")
        assert followed(own_engine, store) == ["prepared", "committed", "lost", "later"]

    def test_a_stable_position_stays_true(self, own_engine: Engine):
        """Positions that were issued and not committed must not be issued again below a follower's position."""
        store = EventStore(make_tables(own_engine))
        with Session(own_engine) as session:
            store.append(session, NoStream(), [make_event()])
            session.rollback()
            stable = store.stable_position(session)
            session.rollback()
        self.crash(own_engine)
        (position,) = append_and_commit(own_engine, store, "after the crash")
        assert position > stable

    def test_a_follower_goes_on(self, own_engine: Engine):
        store = EventStore(make_tables(own_engine))
        seen: list[int] = []
        is_over = threading.Event()

        def write(number: int) -> None:
            chance = random.Random(number)
            while not is_over.is_set():
                with suppress(DBAPIError), Session(own_engine) as session:
                    for _ in range(chance.choice([1, 2, 5])):
                        store.append(session, AnyVersion(), [make_event(f"u{number}")])
                    if chance.random() < 0.8:
                        session.commit()

        def follow() -> None:
            is_last = False
            while not is_last:
                is_last = is_over.is_set() and not any(thread.is_alive() for thread in writers)
                with suppress(DBAPIError), Session(own_engine) as session:
                    while page := store.read_events(session, after=seen[-1] if seen else 0):
                        seen.extend(event.global_position for event in page)
                        session.rollback()

        writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        follower = threading.Thread(target=follow)
        for thread in (*writers, follower):
            thread.start()
        for _ in range(3):
            count = len(seen)
            wait_until(lambda count=count: len(seen) > count + 50)
            self.crash(own_engine)
        is_over.set()
        for thread in (*writers, follower):
            thread.join()
        with own_engine.connect() as connection:
            assert seen == list(connection.scalars(text("SELECT global_position FROM events ORDER BY 1")))


class TestCopies:
    def test_a_dump_that_is_restored_elsewhere(self, own_server: Engine, own_engine: Engine):
        store = EventStore(make_tables(own_engine))
        with Session(own_engine) as open_transaction, open_database(own_server) as copy:
            append_and_commit(own_engine, store, "first")
            store.append(open_transaction, NoStream(), [make_event("open")])
            (last,) = append_and_commit(own_engine, store, "last")
            with own_server.connect() as connection:
                programs = Path(connection.scalar(text("SELECT setting FROM pg_config WHERE name = 'BINDIR'")) or "")
            dump = subprocess.run([programs / "pg_dump", dsn(own_engine)], capture_output=True, check=True).stdout
            restore = [programs / "psql", "--quiet", "--set=ON_ERROR_STOP=1", dsn(copy)]
            subprocess.run(restore, input=dump, stdout=subprocess.DEVNULL, check=True)
            assert followed(own_engine, store) == ["first"]
            assert followed(copy, store) == ["first", "last"], "nobody is appending there"
            with Session(copy) as session:
                assert store.append(session, Exact(1), [make_event("last")]).global_positions == (last + 1,)
                append_and_commit(copy, store, "open")
                assert followed(copy, store, after=last) == []
                session.commit()
            assert followed(copy, store, after=last) == ["last", "open"]

    def test_a_copy_by_template_has_the_same_oids(self, own_server: Engine, own_engine: Engine):
        store = EventStore(make_tables(own_engine))
        append_and_commit(own_engine, store, "first")
        own_engine.dispose()
        template = own_engine.url.database or ""
        with open_database(own_server, template=template) as copy, Session(own_engine) as session:
            store.append(session, NoStream(), [make_event("open")])
            append_and_commit(copy, store, "copy")
            assert followed(copy, store) == ["first", "copy"]


def dsn(engine: Engine) -> str:
    return make_url(engine.url).set(drivername="postgresql").render_as_string(hide_password=False)


class TestOperators:
    def test_truncate_restart_identity(self, engine: Engine, store: EventStore):
        append_and_commit(engine, store, "a", "b", "c")
        with Session(engine) as session:
            session.execute(text("TRUNCATE events, aggregate_heads RESTART IDENTITY"))
            session.rollback()
            assert followed(engine, store) == ["a", "b", "c"]
            session.execute(text("TRUNCATE events, aggregate_heads RESTART IDENTITY"))
            assert store.append(session, NoStream(), [make_event("again")]).global_positions == (1,)
            session.commit()
            store.append(session, Exact(1), [make_event("again")])
            append_and_commit(engine, store, "b")
            assert followed(engine, store) == ["again"]
            session.commit()
        assert followed(engine, store) == ["again", "again", "b"]

    def test_a_restarted_log_without_any_append(self, engine: Engine, store: EventStore):
        append_and_commit(engine, store, "a", "b", "c")
        with Session(engine) as early, Session(engine) as session:
            session.execute(text("TRUNCATE events, aggregate_heads RESTART IDENTITY"))
            session.commit()
            assert store.stable_position(session) == 0
            session.commit()
            store.append(early, NoStream(), [make_event("early")])
            append_and_commit(engine, store, "late")
            assert store.stable_position(session) == 0
            early.commit()
        assert followed(engine, store) == ["early", "late"]

    def test_a_sequence_that_issues_out_of_order_is_refused(self, engine: Engine, store: EventStore):
        """With a cache, a connection issues positions below those that others have issued before."""
        with engine.begin() as connection:
            sequence = connection.scalar(text("SELECT pg_get_serial_sequence('events', 'global_position')"))
            connection.execute(text(f"ALTER SEQUENCE {sequence} CACHE 50"))
        with Session(engine) as session, pytest.raises(StablePositionError, match="CACHE 1"):
            store.stable_position(session)
        with Session(engine) as session, pytest.raises(StablePositionError, match="CACHE 1"):
            store.read_events(session)

    def test_a_sequence_with_larger_steps(self, engine: Engine, store: EventStore):
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE events ALTER COLUMN global_position SET INCREMENT BY 10"))
        with Session(engine) as early:
            store.append(early, NoStream(), [make_event("early"), make_event("early")])
            append_and_commit(engine, store, "late")
            assert followed(engine, store) == []
            early.commit()
        assert followed(engine, store) == ["early", "early", "late"]
