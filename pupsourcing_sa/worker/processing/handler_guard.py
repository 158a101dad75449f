"""The guard around a handler: the transaction belongs to the worker, and so do some of the exceptions.

A handler must not end the transaction. `HandlerGuard` refuses a commit before it happens and notices a rollback. It
does not see SQL: a handler that executes COMMIT is found by `pupsourcing_sa.worker.processing.diagnosis`.

Every exception that leaves a handler is a failure of the handler, whatever its type, unless `is_for_worker` says
otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session

from pupsourcing_sa.errors import HandlerTransactionError

__all__ = ["HandlerGuard", "is_for_worker"]


class HandlerGuard:
    """Context manager around the handler's calls, in the batch's thread or greenlet.

    Args:
        session: the handler's session, in the transaction that holds the checkpoint's lock.
        consumer: name of the consumer, for messages.

    Raises:
        HandlerTransactionError: at the end, the handler has ended the transaction, or tried to.
    """

    __slots__ = ("_consumer", "_refusal", "_session", "_transaction")

    def __init__(self, session: Session, consumer: str) -> None:
        transaction = session.get_transaction()
        assert transaction is not None
        self._session = session
        self._transaction = transaction
        self._consumer = consumer
        self._refusal: HandlerTransactionError | None = None

    def __enter__(self) -> Self:
        sqlalchemy_event.listen(self._session, "before_commit", self._refuse)
        return self

    def __exit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        sqlalchemy_event.remove(self._session, "before_commit", self._refuse)
        if error is None:
            self.check()
            # A savepoint whose flush has failed leaves an inactive session.
            if self._session.get_transaction() is not self._transaction or not self._session.is_active:
                raise self._ended()

    def check(self) -> None:
        """Raise `HandlerTransactionError` if the handler has ended the transaction, or tried to."""
        # The handler may have caught the refusal.
        if self._refusal is not None:
            raise self._refusal
        if not self._transaction.is_active:
            raise self._ended()

    def _refuse(self, session: Session) -> None:
        # A handler may release a savepoint.
        if session.in_nested_transaction():
            return
        self._refusal = HandlerTransactionError(
            f"the handler of consumer {self._consumer!r} called commit(). The worker commits the handler's writes "
            "together with the checkpoint. Remove the call; for a part that may fail on its own, use "
            "session.begin_nested()"
        )
        raise self._refusal

    def _ended(self) -> HandlerTransactionError:
        return HandlerTransactionError(
            f"the handler of consumer {self._consumer!r} ended the transaction that holds its checkpoint, for example "
            "with rollback(). Remove the call; for a part that may fail on its own, use session.begin_nested()"
        )


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
