"""The batch transaction: what a processor does once, as a plain function over a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Scope, Subscription
from pupsourcing_sa.errors import HandlerTransactionError, PartitionParkedError
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.worker._checkpoints import Checkpoint
from pupsourcing_sa.worker._disturbances import is_connection_lost, is_lost_race, is_outage

__all__ = ["Batch", "BatchDisturbed", "BatchFailed", "Bind", "RetryLater", "Share", "ShuttingDown", "run_batch"]

#: Binds a handler to the session that it is made for; what it gives takes the other argument, and waits for the handler
#: if that is a coroutine function.
Bind: TypeAlias = Callable[[Callable[[Any, Any], Any]], Callable[[Any], None]]


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch.

    Attributes:
        scanned: up to here, included, nothing of the scope is left to do.
        checkpoint: the position that the transaction left in the table.
        handled: how many events were handled.
        failures: how often the first of them had failed before.
    """

    scanned: int
    checkpoint: int
    handled: int
    failures: int = 0


class BatchFailed(Exception):
    """A handler failed, which is the cause; the batch was rolled back."""

    def __init__(self, events: Sequence[PersistedEvent], failed: int | None) -> None:
        super().__init__(events, failed)
        self.events = events
        self.failed = failed

    @property
    def event(self) -> PersistedEvent:
        """The event that failed, or the first of those that it may be."""
        return self.events[self.failed or 0]


class BatchDisturbed(Exception):
    """The batch was rolled back for a reason, which is the cause, that says nothing about its events."""


class RetryLater(Exception):
    """The event that comes next has failed, and is not to be tried again yet."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class ShuttingDown(Exception):
    """The batch was rolled back because the worker cannot wait for it any longer."""


@dataclass(frozen=True, slots=True)
class Share:
    """A partition of a consumer, and all that stays the same from batch to batch.

    Attributes:
        subscription: the consumer.
        scope: which events it wants, with the partition.
        store: where they are.
        checkpoint: how far it has come.
        worker_id: the node that the partition is assigned to; ``None`` if there is none.
        is_aborted: asked before the commit, whether the batch is to be rolled back.
    """

    subscription: Subscription
    scope: Scope
    store: EventStore
    checkpoint: Checkpoint
    worker_id: UUID | None
    is_aborted: Callable[[], bool]


def run_batch(
    session: Session,
    bind: Bind,
    share: Share,
    known: Batch,
    *,
    up_to: int,
    window: int,
    limit: int,
    is_checkpoint_due: Callable[[int], bool],
    is_retry_due: Callable[[float], bool],
    is_over: Callable[[], bool],
) -> Batch | None:
    """Handle the next events of a share and move its checkpoint, in one transaction that this function commits.

    Args:
        session: a fresh session.
        bind: how a handler is called.
        share: whose events they are.
        known: what became of the previous batch.
        up_to: a stable position; nothing after it is read.
        window: look at so many positions at the most, so that a rare scope does not scan all of the log at once.
        limit: at most so many events; one that has failed is tried alone.
        is_checkpoint_due: whether a checkpoint is to be moved over so many positions that hold nothing of the scope.
        is_retry_due: whether an event that has failed is to be tried again so many seconds before its time.
        is_over: asked after each event, whether the batch is to end with it; not asked of a ``handle_batch``.

    Returns:
        ``None`` when somebody else has the checkpoint.

    Raises:
        BatchFailed: from the exception of the handler.
        BatchDisturbed: from an exception of the handler, or of the commit, that is no fault of the events.
        PartitionParkedError: the partition is to stand still.
        RetryLater: ``is_retry_due`` said so.
        ShuttingDown: ``is_aborted`` said so.
    """
    checkpoint = share.checkpoint
    locked = checkpoint.lock(session, worker_id=share.worker_id)
    if locked is None:
        return None
    position = locked.position
    if locked.is_parked:
        failed = position if locked.failed_position is None else locked.failed_position
        raise PartitionParkedError(share.subscription.name, share.scope.partition, failed)
    if locked.retry_after > 0 and not is_retry_due(locked.retry_after):
        raise RetryLater(locked.retry_after)
    if locked.failed_position is not None:
        limit = 1
    connection = checkpoint.connection(session)
    # What was scanned before counts only if the checkpoint is where we left it.
    after = known.scanned if position == known.checkpoint else position
    up_to = min(up_to, after + window)
    events: Sequence[PersistedEvent] = share.store._read_stable(session, share.scope, after, up_to, limit)
    is_all = len(events) < limit
    if events:
        handled = _handle(session, bind, share, events, connection, is_over)
        is_all = is_all and len(handled) == len(events)
        events = handled
    scanned = max(after, up_to) if is_all else events[-1].global_position
    if share.is_aborted():
        raise ShuttingDown
    try:
        if events or is_checkpoint_due(scanned - position):
            checkpoint.move(session, scanned, locked.transaction)
            position = scanned
        session.commit()
    except Exception as error:
        if not events:
            raise
        raise _judged(error, connection, events, None) from error  # such as a deferred constraint
    return Batch(scanned, position, len(events), locked.attempts)


def _handle(
    session: Session,
    bind: Bind,
    share: Share,
    events: Sequence[PersistedEvent],
    connection: Connection,
    is_over: Callable[[], bool],
) -> Sequence[PersistedEvent]:
    """Give the events to the handler, until the batch is over; gives those that it got."""
    handler = share.subscription
    current: int | None = None
    try:
        with _guarded(session, handler.name) as check:
            if callable(handler.handle_batch):
                bind(handler.handle_batch)(list(events))
                check()
            else:
                assert handler.handle is not None
                call = bind(handler.handle)
                for current, event in enumerate(events):
                    call(event)
                    check()
                    if is_over():
                        events = events[: current + 1]
                        break
                current = None
            session.flush()
    except BaseException as error:  # also pytest's, and a handler's exit is not the worker's
        if (
            isinstance(error, (KeyboardInterrupt, GeneratorExit))
            or _is_of_greenlet(error)
            or _is_own_cancellation(error, share.is_aborted)
        ):
            raise
        raise _judged(error, connection, events, current) from error
    return events


def _judged(
    error: BaseException, connection: Connection, events: Sequence[PersistedEvent], failed: int | None
) -> BatchFailed | BatchDisturbed:
    """Whose fault it is that the batch failed. In doubt not the events', which would be counted against them."""
    if is_lost_race(error) or is_outage(error) or is_connection_lost(connection):
        return BatchDisturbed()
    return BatchFailed(events, failed)


def _is_own_cancellation(error: BaseException, is_aborted: Callable[[], bool]) -> bool:
    """Whether the task of the worker is cancelled, and not something that the handler waits for."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in a thread, where nobody cancels anything
        return False
    if task is None or not task.cancelling():
        return False
    if is_aborted():
        return True
    while task.cancelling():  # by the handler, of the task that it runs in
        task.uncancel()
    return False


def _is_of_greenlet(error: BaseException) -> bool:
    """Whether the greenlet is being thrown away, as when the event loop is; greenlet may not be installed."""
    return type(error).__name__ == "GreenletExit"


@contextmanager
def _guarded(session: Session, name: str) -> Iterator[Callable[[], None]]:
    """Keep the handler's hands off the transaction: a commit is refused before it happens, a rollback is noticed."""
    transaction = session.get_transaction()
    assert transaction is not None
    refused: list[HandlerTransactionError] = []

    def refuse(session: Session) -> None:
        if not session.in_nested_transaction():  # the release of a savepoint arrives here as well
            refused.append(
                HandlerTransactionError(
                    f"the handler of consumer {name!r} called commit(); the worker commits its writes together with "
                    "the checkpoint. Use session.begin_nested() for a part that may fail on its own"
                )
            )
            raise refused[0]

    def check() -> None:
        if refused:  # and swallowed by the handler
            raise refused[0]
        if not transaction.is_active:
            raise ended

    ended = HandlerTransactionError(
        f"the handler of consumer {name!r} rolled back, or ended by other means, the transaction that holds its "
        "checkpoint. Use session.begin_nested() for a part that may fail on its own"
    )
    sqlalchemy_event.listen(session, "before_commit", refuse)
    try:
        yield check
        check()
        if session.get_transaction() is not transaction or not session.is_active:  # a savepoint whose flush has failed
            raise ended
    finally:
        sqlalchemy_event.remove(session, "before_commit", refuse)
