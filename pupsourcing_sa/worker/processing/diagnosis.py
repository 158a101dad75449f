"""Diagnosis: the translation of an exception that ended a batch into an outcome.

`pupsourcing_sa.worker.classification` decides which failures count. Before that, the server is asked if the connection
is lost, because the driver may not know it yet. It is also asked if the handler has committed the transaction.

An error of another database, which the handler uses on its own, is a failure of the handler. `session_databases`
knows the others. An error that the handler got from the driver itself belongs to the batch if the batch's
transaction has failed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import HandlerTransactionError
from pupsourcing_sa.worker.classification import FailureKind, classify, is_lost_race
from pupsourcing_sa.worker.execution.session_databases import is_from_session_database
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint, LockedCheckpoint
from pupsourcing_sa.worker.processing.outcomes import BatchCommitted, BatchFailed, BatchInterrupted
from pupsourcing_sa.worker.processing.overdue import BatchProgress

__all__ = ["LockedTransaction", "is_connection_lost", "raise_outcome"]


@dataclass(frozen=True, slots=True)
class LockedTransaction:
    """The transaction of a batch, as it was when it locked the checkpoint.

    Attributes:
        session: the session of the batch.
        connection: its connection to the checkpoint's database.
        checkpoint: the checkpoint.
        locked: the row, as it was locked.
    """

    session: Session
    connection: Connection
    checkpoint: Checkpoint
    locked: LockedCheckpoint

    def was_committed(self) -> bool:
        """Roll back, and return True if the handler had committed. Return False if the server does not answer."""
        try:
            self.session.reset()  # after an error it may refuse to execute anything
            return self.checkpoint.is_committed(self.session, self.locked)
        except Exception:  # the failure of the batch matters more, and few handlers commit
            return False


def is_connection_lost(connection: Connection) -> bool:
    """Return True if the connection is lost; ask the server, because the driver may not know it yet."""
    if connection.invalidated:
        return True
    if connection.closed:
        return False  # the handler ended the transaction of the session; there is no connection to ask
    try:
        connection.scalar(select(1))
    except DBAPIError as error:
        # If the connection is valid, only the transaction has failed.
        return error.connection_invalidated
    except OSError:  # asyncpg raises it
        return True
    except Exception:
        return connection.invalidated
    return False


def _has_failed(connection: Connection) -> bool:
    """Return True if the transaction can execute nothing more."""
    try:
        connection.scalar(select(1))
    except Exception:
        return True
    return False


def raise_outcome(
    error: BaseException, transaction: LockedTransaction, progress: BatchProgress, *, is_moved: bool
) -> NoReturn:
    """Raise the outcome of a batch that an exception has ended, after rolling it back.

    Args:
        error: the exception.
        transaction: the transaction of the batch.
        progress: the events of the batch, and the current one.
        is_moved: the checkpoint was moved. The transaction then still held the lock, so the handler cannot have
            committed it.
    """
    events, failed = progress.events, progress.current
    connection = transaction.connection

    def is_of_batch(cause: BaseException) -> bool:
        return is_from_session_database(cause) if isinstance(cause, DBAPIError) else _has_failed(connection)

    # A transaction that has lost a race is retried in any case, and soon: save the round trip.
    is_lost = not is_lost_race(error) and is_connection_lost(connection)
    kind = classify(error, is_connection_lost=is_lost, is_of_batch=is_of_batch)
    if not is_moved and transaction.was_committed():
        handled = events if failed is None else events[: failed + 1]
        committed = _handler_committed(transaction.checkpoint, handled[0].global_position, handled[-1].global_position)
        committed.__cause__ = error
        raise BatchCommitted(handled, None) from committed
    if kind is not FailureKind.HANDLER:
        raise BatchInterrupted(events, failed) from error
    failure = BatchFailed(events, failed)
    _add_note(error, failure, transaction.checkpoint.consumer_name)
    raise failure from error


def _add_note(error: BaseException, failure: BatchFailed, consumer: str) -> None:
    """Add a note to the exception that names the event being handled."""
    events = repr(failure.event)
    if failure.failed is None and len(failure.events) > 1:
        first, last = failure.events[0].global_position, failure.events[-1].global_position
        events = f"the events from {first} to {last}"
    note = f"while consumer {consumer!r} handled {events}"
    with suppress(Exception):  # the application may raise the same object again, or one that refuses notes
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _handler_committed(checkpoint: Checkpoint, first: int, last: int) -> HandlerTransactionError:
    return HandlerTransactionError(
        f"a handler of consumer {checkpoint.consumer_name!r} committed past the session, for example by executing "
        f"COMMIT: all or some writes of the events from {first} to {last} are committed without the checkpoint of "
        f"partition {checkpoint.partition}. To continue, inspect the writes; undo them, or set last_position to the "
        "last event whose writes you keep; then set parked_at to NULL. Otherwise the events are applied twice"
    )
