"""The batch transaction: what a processor does once, as a plain function over a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Scope, Subscription
from pupsourcing_sa.errors import HandlerTransactionError, PartitionParkedError, StablePositionError
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.postgres.connections import connection_of
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.worker.classification import is_cancellation, is_connection_lost, is_lost_race, is_outage
from pupsourcing_sa.worker.execution.protocol import BindHandler
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint, Locked
from pupsourcing_sa.worker.processing.progress import Progress

__all__ = [
    "Batch",
    "BatchCommitted",
    "BatchDisturbed",
    "BatchFailed",
    "BatchStopped",
    "RetryLater",
    "Share",
    "ShuttingDown",
    "run_batch",
]


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch.

    Attributes:
        scanned: up to here, included, nothing of the scope is left to do.
        checkpoint: the position that the transaction left in the table.
        handled: how many events were handled.
        failures: how often the first of them had failed before.
        origin: the server and database that ``scanned`` is true of; ``None`` if nothing was scanned.
    """

    scanned: int
    checkpoint: int
    handled: int
    failures: int = 0
    origin: str | None = None


class BatchStopped(Exception):
    """A batch came to its events and not to its end; the cause is this exception's.

    Attributes:
        events: the events of the batch.
        failed: index of the one that it happened at; ``None`` when that is not known.
    """

    def __init__(self, events: Sequence[PersistedEvent], failed: int | None) -> None:
        super().__init__(events, failed)
        self.events = events
        self.failed = failed

    @property
    def event(self) -> PersistedEvent:
        """The event that it happened at, or the first of those that it may be."""
        return self.events[self.failed or 0]


class BatchFailed(BatchStopped):
    """A handler failed, which is the cause; the batch was rolled back."""


class BatchDisturbed(BatchStopped):
    """The batch was rolled back for a reason, which is the cause, that says nothing about its events."""


class BatchCommitted(BatchStopped):
    """A handler has committed the transaction, past SQLAlchemy; the checkpoint is where it was. The cause says so."""


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
    bind: BindHandler,
    share: Share,
    known: Batch,
    *,
    up_to: int,
    origin: str | None,
    window: int,
    limit: int,
    progress: Progress,
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
        origin: the server and database whose it is; ``None`` to take it for the session's.
        window: look at so many positions at the most, so that a rare scope does not scan all of the log at once; a
            hole after them counts as looked at.
        limit: at most so many events; one that has failed is tried alone.
        progress: is kept up to date with where the batch is.
        is_checkpoint_due: whether a checkpoint is to be moved over so many positions that hold nothing of the scope.
        is_retry_due: whether an event that has failed is to be tried again so many seconds before its time.
        is_over: asked after each event, whether the batch is to end with it; not asked of a ``handle_batch``.

    Returns:
        ``None`` when somebody else has the checkpoint.

    Raises:
        BatchFailed: from the exception of the handler.
        BatchDisturbed: from an exception of the handler, or of the commit, that is no fault of the events.
        BatchCommitted: from a `HandlerTransactionError`; to run the batch again would apply its events twice.
        PartitionParkedError: the partition is to stand still.
        RetryLater: ``is_retry_due`` said so.
        ShuttingDown: ``is_aborted`` said so.
        StablePositionError: the session is connected to another server or database than the position is of.
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
    here = _origin(session, share, locked)
    if origin not in (None, here):
        raise StablePositionError(
            "the server has been restarted, or another one or another database has taken its place, since the stable "
            "position was read, which may be a different one now"
        )
    # What was scanned before counts only if the checkpoint is where we left it, and there.
    is_known = position == known.checkpoint and known.origin == here
    after = known.scanned if is_known else position
    stable, up_to = up_to, min(up_to, after + window)
    events: Sequence[PersistedEvent] = share.store.reader.page(session, share.scope, after, up_to, limit)
    if not events and up_to < stable:  # the log may go on far behind a hole, as when it was adopted
        up_to = share.store.reader.end_of_gap(session, up_to, stable)
    is_all = len(events) < limit
    attempt = _Attempt(session, share, locked, checkpoint.connection(session), progress)
    if events:
        progress.events = events
        handled = attempt.handle(bind, is_over)
        is_all = is_all and len(handled) == len(events)
        events = handled
    scanned = max(after, up_to) if is_all else events[-1].global_position
    if share.is_aborted():
        raise ShuttingDown
    try:
        if events or is_checkpoint_due(scanned - position):
            checkpoint.move(session, scanned, locked)
            position = scanned
            attempt.has_moved = True
        session.commit()
    except Exception as error:
        if not events:
            raise
        attempt.fail(error)  # such as a deferred constraint
    return Batch(scanned, position, len(events), locked.attempts, here)


def _origin(session: Session, share: Share, locked: Locked) -> str:
    """Where the log is; a session may have it in another database than the checkpoint."""
    log = connection_of(session, share.store.tables.events)
    return locked.origin if log is share.checkpoint.connection(session) else share.store.reader.server_identity(session)


class _Attempt:
    """What comes between reading the events of a batch and its end, and what to make of it if it fails."""

    def __init__(
        self, session: Session, share: Share, locked: Locked, connection: Connection, progress: Progress
    ) -> None:
        self.has_moved = False  # the checkpoint, in the transaction that locked it
        self._session = session
        self._share = share
        self._locked = locked
        self._connection = connection
        self._progress = progress

    def handle(self, bind: BindHandler, is_over: Callable[[], bool]) -> Sequence[PersistedEvent]:
        """Give the events to the handler, until the batch is over; gives those that it got."""
        session, handler, progress = self._session, self._share.subscription, self._progress
        try:
            with _guarded(session, handler.name) as check:
                if callable(handler.handle_batch):
                    bind(handler.handle_batch)(list(progress.events))
                    check()
                else:
                    assert handler.handle is not None
                    call = bind(handler.handle)
                    for number, event in enumerate(progress.events):
                        progress.current = number
                        call(event)
                        check()
                        if is_over():
                            progress.events = progress.events[: number + 1]
                            break
                    progress.current = None
                session.flush()
        except BaseException as error:  # also pytest's, and a handler's exit is not the worker's
            if _is_of_the_loop(error) or _is_of_greenlet(error) or _is_own_cancellation(error, self._share.is_aborted):
                raise
            self.fail(error)
        return progress.events

    def fail(self, error: BaseException) -> NoReturn:
        """Say whose fault it is. In doubt not the events', which would be counted against them."""
        events, failed = self._progress.events, self._progress.current
        is_lost = is_connection_lost(self._connection)
        # A handler's own time limit cancels what it waits for, and SQLAlchemy throws away the connection of that.
        is_disturbed = is_lost_race(error) or is_outage(error) or (is_lost and not is_cancellation(error))
        # A checkpoint is moved by the transaction that has locked it, or not at all: nobody has committed that before.
        if not self.has_moved and self._is_committed(may_have_crashed=is_lost or self._connection.closed):
            given = events if failed is None else events[: failed + 1]
            committed = self._committed(given[0].global_position, given[-1].global_position)
            committed.__cause__ = error
            raise BatchCommitted(given, None) from committed
        if is_disturbed:
            raise BatchDisturbed(events, failed) from error
        self._add_note(error, events, failed)
        raise BatchFailed(events, failed) from error

    def _add_note(self, error: BaseException, events: Sequence[PersistedEvent], failed: int | None) -> None:
        """Let a traceback say what was handled, wherever it is shown."""
        which = repr(events[failed or 0])
        if failed is None and len(events) > 1:
            which = f"the events from {events[0].global_position} to {events[-1].global_position}"
        note = f"while consumer {self._share.subscription.name!r} handled {which}"
        with suppress(Exception):  # it is the application's, and may be an object that it raises again and again
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)

    def _is_committed(self, *, may_have_crashed: bool) -> bool:
        """Whether the handler has committed what it should not; no, when nobody answers.

        It is not asked again: after a crash the id may be issued once more, to a transaction that does commit.
        """
        try:
            self._session.reset()  # rolls back; as it is, it may be in no state to be asked
            return self._share.checkpoint.is_committed(
                self._session, self._locked.transaction, may_have_crashed=may_have_crashed
            )
        except Exception:  # why the batch has failed matters more, and most handlers do not commit
            return False

    def _committed(self, first: int, last: int) -> HandlerTransactionError:
        return HandlerTransactionError(
            f"writes of the events from {first} to {last}, all or some of them, are committed without the checkpoint "
            f"of partition {self._share.scope.partition} of consumer {self._share.subscription.name!r}: a handler has "
            "committed past the session, for example by executing COMMIT. To go on, look at them by hand, take them "
            "back or set last_position to the last event whose writes are to stay, and set parked_at to NULL; "
            "otherwise they are applied twice"
        )


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


def _is_of_the_loop(error: BaseException) -> bool:
    """Whether it may be Ctrl-C, or the end of a coroutine; neither comes to a thread that has no event loop."""
    return isinstance(error, (KeyboardInterrupt, GeneratorExit)) and asyncio._get_running_loop() is not None


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
