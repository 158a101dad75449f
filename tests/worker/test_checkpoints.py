"""The checkpoint's statements: what is locked, by whom, and what is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from pupsourcing_sa import WorkerTables
from pupsourcing_sa.errors import HandlerTransactionError, TablesMissingError, TransactionRequiredError
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint, Failure, LockedCheckpoint
from tests.fix_processing import assign

WORKER = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.fixture
def checkpoint(engine: Engine, worker_tables: WorkerTables) -> Checkpoint:
    assign(engine, worker_tables, "it's", 3)
    return Checkpoint(worker_tables, "it's", 3)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@pytest.fixture
def other(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


def name_of(session: Session) -> str:
    return str(session.scalar(select(func.current_setting("application_name"))))


class TestLock:
    def test_a_missing_checkpoint_is_created_and_committed(
        self, checkpoint: Checkpoint, session: Session, other: Session
    ):
        found = checkpoint.lock(session)
        assert found is not None
        assert found._replace(transaction=0, server_identity="", table=0) == LockedCheckpoint(
            0, None, 0, False, 0.0, 0, 0, "", 0, "read committed"
        )
        assert found.transaction == session.scalar(text("SELECT txid_current()"))
        assert other.scalar(select(func.count()).select_from(checkpoint.tables.consumer_checkpoints)) == 1

    def test_only_one_transaction_has_the_lock(self, checkpoint: Checkpoint, session: Session, other: Session):
        assert checkpoint.lock(session)
        assert checkpoint.lock(other) is None
        other.rollback()
        session.rollback()
        assert checkpoint.lock(other)

    def test_a_moved_checkpoint_blocks_no_transaction(self, checkpoint: Checkpoint, session: Session, other: Session):
        found = checkpoint.lock(session)
        assert found is not None
        checkpoint.move(session, 7, found)
        other.execute(text("SET lock_timeout = '1s'"))
        assert checkpoint.lock(other) is None
        failure = checkpoint.record_failure(other, position=9, error="", delay=float)
        assert failure is None

    def test_what_was_committed_meanwhile_is_seen(self, checkpoint: Checkpoint, session: Session, other: Session):
        for position in (5, 9):
            found = checkpoint.lock(session)
            assert found is not None
            checkpoint.move(session, position, found)
            session.commit()
            found = checkpoint.lock(other)
            assert found is not None
            assert found.position == position
            other.rollback()

    def test_the_holder_has_its_name_until_the_transaction_ends(self, checkpoint: Checkpoint, session: Session):
        before = name_of(session)
        checkpoint.lock(session, worker_id=WORKER)
        assert name_of(session) == f"pupsourcing-sa {WORKER}"
        session.commit()
        assert name_of(session) == before

    def test_a_transaction_without_the_lock_has_no_name_and_writes_nothing(
        self, checkpoint: Checkpoint, session: Session, other: Session
    ):
        assert checkpoint.lock(session, worker_id=uuid4())
        before = name_of(other)
        assert checkpoint.lock(other, worker_id=WORKER) is None
        assert name_of(other) == before
        assert other.scalar(text("SELECT txid_current_if_assigned()")) is None

    def test_a_drain_sets_no_name(self, checkpoint: Checkpoint, session: Session):
        before = name_of(session)
        checkpoint.lock(session)
        assert name_of(session) == before

    def test_without_a_transaction(self, checkpoint: Checkpoint, engine: Engine):
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        with Session(autocommit) as session, pytest.raises(TransactionRequiredError):
            checkpoint.lock(session)

    def test_missing_tables(self, session: Session):
        with pytest.raises(TablesMissingError, match="elsewhere.consumer_checkpoints"):
            Checkpoint(WorkerTables(schema="elsewhere"), "all", 0).lock(session)


class TestMove:
    def test_only_by_the_transaction_that_locked_it(self, checkpoint: Checkpoint, session: Session):
        found = checkpoint.lock(session)
        assert found is not None
        session.commit()
        with pytest.raises(HandlerTransactionError, match='partition 3 of consumer "it\'s" is no longer locked'):
            checkpoint.move(session, 5, found)
        assert checkpoint.read(session) == 0


class TestIsCommitted:
    def test_as_the_server_says(self, checkpoint: Checkpoint, session: Session, other: Session):
        def is_committed(**changes: Any) -> bool:
            assert locked is not None
            return checkpoint.is_committed(other, locked._replace(**changes))

        locked = checkpoint.lock(session)
        assert not is_committed()
        session.commit()
        assert is_committed()
        locked = checkpoint.lock(session)
        session.rollback()
        assert not is_committed()
        assert not is_committed(transaction=0), "a transaction that is forgotten"

    def test_another_server_does_not_know(self, checkpoint: Checkpoint, session: Session):
        """It may have issued the same id to another transaction, or never."""
        locked = checkpoint.lock(session)
        assert locked is not None
        session.commit()
        elsewhere = locked._replace(server_identity="another server")
        assert not checkpoint.is_committed(session, elsewhere)
        assert not checkpoint.is_committed(session, elsewhere._replace(transaction=2**60 + 3))


class TestRecordFailure:
    def record(self, checkpoint: Checkpoint, session: Session, position: int = 5, **options: object) -> Failure | None:
        recorded = checkpoint.record_failure(
            session, position=position, **{"error": "bad", "delay": lambda attempts: 100.0 * attempts} | options
        )
        session.commit()
        return recorded

    def test_it_counts(self, checkpoint: Checkpoint, session: Session):
        assert self.record(checkpoint, session) == Failure(1, 100.0)
        assert self.record(checkpoint, session) == Failure(2, 200.0)
        found = checkpoint.lock(session)
        assert found is not None
        assert found[:4] == (0, 5, 2, False)
        assert 190 < found.retry_after <= 200
        assert self.record(checkpoint, session, position=6) == Failure(1, 100.0)

    def test_it_parks(self, checkpoint: Checkpoint, session: Session):
        assert self.record(checkpoint, session, max_attempts=2) == Failure(1, 100.0)
        assert self.record(checkpoint, session, max_attempts=2) == Failure(2, None)
        found = checkpoint.lock(session)
        assert found is not None
        assert found[:5] == (0, 5, 2, True, 0.0)
        assert self.record(checkpoint, session, max_attempts=2) is None

    def test_an_event_that_another_transaction_has_passed(self, checkpoint: Checkpoint, session: Session):
        found = checkpoint.lock(session)
        assert found is not None
        checkpoint.move(session, 5, found)
        session.commit()
        assert self.record(checkpoint, session) is None
        assert checkpoint.lock(session)[:4] == (5, None, 0, False)

    def test_what_is_not_counted(self, checkpoint: Checkpoint, session: Session):
        def interrupt(position: int) -> Failure | None:
            recorded = checkpoint.record_interruption(session, position=position, error="bad", retry_after=100.0)
            session.commit()
            return recorded

        assert interrupt(5) == Failure(0, 100.0)
        found = checkpoint.lock(session)
        assert found is not None
        assert found[:4] == (0, 5, 0, False)
        assert 90 < found.retry_after <= 100
        assert self.record(checkpoint, session) == Failure(1, 100.0)
        assert interrupt(5) == Failure(1, 100.0)
        assert interrupt(6) == Failure(0, 100.0)
        self.record(checkpoint, session, max_attempts=1)
        assert interrupt(5) is None
        assert checkpoint.lock(session)[:4] == (0, 5, 1, True)

    def test_what_is_parked_at_once(self, checkpoint: Checkpoint, session: Session, other: Session):
        def park(position: int, error: str = "bad") -> Failure | None:
            recorded = checkpoint.park(session, position=position, error=error)
            session.commit()
            return recorded

        assert checkpoint.lock(other)
        assert park(5) is None
        found = checkpoint.lock(other)
        checkpoint.move(other, 7, found)
        other.commit()
        assert park(5) == Failure(1, None)  # another transaction has passed it, and applied it a second time
        assert checkpoint.lock(session)[:5] == (7, 5, 1, True, 0.0)
        assert park(5, "worse") == Failure(1, None)
        assert session.scalar(select(checkpoint.tables.consumer_checkpoints.c.error)) == "bad"

    def test_any_error_text_can_be_recorded(self, checkpoint: Checkpoint, session: Session):
        errors = {
            "nul \0": "nul \N{SYMBOL FOR NULL}",
            "half \ud800 of a pair": "half \\ud800 of a pair",
            "Ärger": "Ärger",
            "a" * 15_000 + "b" * 15_000: "a" * 10_000 + "\n…\n" + "b" * 10_000,
        }
        for error, expected in errors.items():
            self.record(checkpoint, session, error=error)
            assert session.scalar(select(checkpoint.tables.consumer_checkpoints.c.error)) == expected
