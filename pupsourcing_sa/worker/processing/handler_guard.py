"""The guard around a handler: the transaction belongs to the worker, and so do some of the exceptions.

A handler must not end the transaction. `HandlerGuard` refuses a commit before it happens and notices a rollback. It
does not see SQL: a handler that executes COMMIT is found by `pupsourcing_sa.worker.processing.diagnosis`.

A handler must not catch a database error and continue without a savepoint either. PostgreSQL has aborted the
transaction, so the next statement would fail, which may be the worker's own. `HandlerGuard` remembers the error until
the handler returns, and then asks the server if the transaction is aborted. Handlers without errors cost nothing.

Every exception that leaves a handler is a failure of the handler, whatever its type, unless `is_for_worker` says
otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Self

from sqlalchemy import Connection, ExceptionContext, select
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import HandlerTransactionError
from pupsourcing_sa.postgres.errors import is_in_failed_transaction

__all__ = ["HandlerGuard", "is_for_worker"]


#: Events of a session when one of its transactions ends. A flush and a savepoint are transactions, too.
_ENDS: Final = ("after_soft_rollback", "after_transaction_end")
#: The guards of running batches, by the connections of their sessions.
_guards: Final[dict[Connection, HandlerGuard]] = {}


class HandlerGuard:
    """Context manager around the handler's calls, in the batch's thread or greenlet.

    Args:
        session: the handler's session, in the transaction that holds the checkpoint's lock.
        connection: the session's connection to the checkpoint.
        consumer: name of the consumer, for messages.

    Raises:
        HandlerTransactionError: at the end, the handler has ended the transaction, or tried to, or has caught an error
            that aborted it.
    """

    __slots__ = ("_connection", "_consumer", "_error", "_refusal", "_session", "_transaction", "is_alarmed")

    def __init__(self, session: Session, connection: Connection, consumer: str) -> None:
        transaction = session.get_transaction()
        assert transaction is not None
        self._session = session
        self._connection = connection
        self._transaction = transaction
        self._consumer = consumer
        self._refusal: HandlerTransactionError | None = None
        #: The last error of the connection, except that the transaction is aborted.
        self._error: BaseException | None = None
        #: The handler has done something after which `check` may refuse it.
        self.is_alarmed = False

    def __enter__(self) -> Self:
        sqlalchemy_event.listen(self._session, "before_commit", self._refuse)
        for name in _ENDS:
            sqlalchemy_event.listen(self._session, name, self._alarm)
        # SQLAlchemy has this event for a dialect as a whole, and not for one connection.
        if not sqlalchemy_event.contains(self._connection.dialect, "handle_error", _remember):
            sqlalchemy_event.listen(self._connection.dialect, "handle_error", _remember)
        _guards[self._connection] = self
        return self

    def __exit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        sqlalchemy_event.remove(self._session, "before_commit", self._refuse)
        for name in _ENDS:
            sqlalchemy_event.remove(self._session, name, self._alarm)
        try:
            if error is None:
                self.check()
                # A savepoint whose flush has failed leaves an inactive session.
                if self._session.get_transaction() is not self._transaction or not self._session.is_active:
                    raise self._ended()
            elif is_in_failed_transaction(error):
                raise self._aborted() from self._error or error
        finally:
            del _guards[self._connection]
            self._error = None

    def check(self) -> None:
        """Raise `HandlerTransactionError` if the handler has ended the transaction, or tried to, or has aborted it."""
        self.is_alarmed = False
        # The handler may have caught the refusal.
        if self._refusal is not None:
            raise self._refusal
        if self._error is not None:
            if self._is_aborted():
                raise self._aborted() from self._error
            self._error = None
        if not self._transaction.is_active:
            raise self._ended()

    def remember(self, error: BaseException) -> None:
        """Remember an error of the connection. The handler may catch it."""
        if not is_in_failed_transaction(error):
            self._error = error
            self.is_alarmed = True

    def _is_aborted(self) -> bool:
        """Return True if an error has aborted the transaction, and the handler has not ended it."""
        if self._session.get_transaction() is not self._transaction:
            return False
        # After an error in a flush, SQLAlchemy has already rolled back, and waits for the application to do so.
        if not self._transaction.is_active:
            return True
        try:
            self._connection.scalar(select(1))
        except DBAPIError as error:
            return is_in_failed_transaction(error)
        return False

    def _alarm(self, *_: object) -> None:
        self.is_alarmed = True

    def _refuse(self, session: Session) -> None:
        # A handler may release a savepoint.
        if session.in_nested_transaction():
            return
        self._refusal = HandlerTransactionError(
            f"the handler of consumer {self._consumer!r} called commit(). The worker commits the handler's writes "
            "together with the checkpoint. Remove the call; for a part that may fail on its own, use "
            "session.begin_nested()"
        )
        self.is_alarmed = True
        raise self._refusal

    def _aborted(self) -> HandlerTransactionError:
        return HandlerTransactionError(
            f"the handler of consumer {self._consumer!r} caught a database error and continued, but PostgreSQL has "
            "aborted the transaction, and its writes would be lost. Do not catch the error; for a part that may fail "
            "on its own, use session.begin_nested()"
        )

    def _ended(self) -> HandlerTransactionError:
        return HandlerTransactionError(
            f"the handler of consumer {self._consumer!r} ended the transaction that holds its checkpoint, for example "
            "with rollback(). Remove the call; for a part that may fail on its own, use session.begin_nested()"
        )


def _remember(context: ExceptionContext) -> None:
    if context.connection in _guards and context.sqlalchemy_exception is not None:
        _guards[context.connection].remember(context.sqlalchemy_exception)


def is_for_worker(error: BaseException, is_aborted: Callable[[], bool]) -> bool:
    """Return True if an exception that leaves a handler belongs to the worker, and is not a failure of the handler.

    These are Ctrl-C and the end of a coroutine in a thread with an event loop, the end of a greenlet, and the
    cancellation of the batch by the worker. A handler that raises ``KeyboardInterrupt`` in another thread, or
    ``SystemExit``, has failed.

    Args:
        error: the exception.
        is_aborted: returns True if the worker rolls back running batches.
    """
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return asyncio._get_running_loop() is not None
    if type(error).__name__ == "GreenletExit":  # greenlet may not be installed
        return True
    return isinstance(error, asyncio.CancelledError) and _is_worker_cancelling(is_aborted)


def _is_worker_cancelling(is_aborted: Callable[[], bool]) -> bool:
    """Return True if the worker cancels the current task. Withdraw cancellations that a handler requested."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread without an event loop
        return False
    if task is None or not task.cancelling():
        # Something that the handler waits for was cancelled, and not the task.
        return False
    if is_aborted():
        return True
    # A task that still counts as cancelled would end the task groups and timeouts of the next attempt in error.
    while task.cancelling():
        task.uncancel()
    return False
