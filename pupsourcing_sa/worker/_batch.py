"""The batch transaction: what a processor does once, as a plain function over a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Scope, Subscription
from pupsourcing_sa.errors import HandlerTransactionError
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store._errors import is_lost_race, is_outage
from pupsourcing_sa.worker._checkpoints import Checkpoint

__all__ = ["Batch", "BatchFailed", "Invoke", "ShuttingDown", "run_batch"]

#: Calls a handler with the session it is made for and one more argument; waits for it if it is a coroutine function.
Invoke: TypeAlias = Callable[[Callable[[Any, Any], Any], Any], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch.

    Attributes:
        scanned: up to here, included, nothing of the scope is left to do.
        checkpoint: the position that the transaction left in the table.
        handled: how many events were handled.
    """

    scanned: int
    checkpoint: int
    handled: int


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


class ShuttingDown(Exception):
    """The batch was rolled back because the worker cannot wait for it any longer."""


def run_batch(
    session: Session,
    invoke: Invoke,
    *,
    store: EventStore,
    subscription: Subscription,
    scope: Scope,
    checkpoint: Checkpoint,
    known: Batch,
    up_to: int,
    window: int,
    limit: int,
    is_checkpoint_due: Callable[[int], bool],
    is_aborted: Callable[[], bool],
) -> Batch | None:
    """Handle the next events of a scope and move its checkpoint, in one transaction that this function commits.

    Args:
        session: a fresh session.
        invoke: how a handler is called.
        store: where the events are.
        subscription: whose events they are.
        scope: which of them, with the partition.
        checkpoint: where they begin.
        known: what became of the previous batch.
        up_to: a stable position; nothing after it is read.
        window: look at so many positions at the most, so that a rare scope does not scan all of the log at once.
        limit: at most so many events.
        is_checkpoint_due: whether a checkpoint is to be moved over so many positions that hold nothing of the scope.
        is_aborted: asked before each event.

    Returns:
        ``None`` when somebody else has the checkpoint.

    Raises:
        BatchFailed: from the exception of the handler.
        ShuttingDown: ``is_aborted`` said so.
    """
    locked = checkpoint.lock(session)
    if locked is None:
        return None
    position, transaction = locked
    # What was scanned before counts only if the checkpoint is where we left it.
    after = known.scanned if position == known.checkpoint else position
    up_to = min(up_to, after + window)
    events = store._read_stable(session, scope, after, up_to, limit)
    scanned = events[-1].global_position if len(events) == limit else max(after, up_to)
    if events:
        with _guarded(session, subscription.name) as check:
            _handle(session, invoke, subscription, events, check, is_aborted)
    if is_aborted():
        raise ShuttingDown
    try:
        if events or is_checkpoint_due(scanned - position):
            checkpoint.move(session, scanned, transaction)
            position = scanned
        session.commit()
    except Exception as error:
        if not events or is_outage(error) or is_lost_race(error):
            raise
        raise BatchFailed(events, None) from error  # such as a deferred constraint
    return Batch(scanned, position, len(events))


def _handle(
    session: Session,
    invoke: Invoke,
    subscription: Subscription,
    events: Sequence[PersistedEvent],
    check: Callable[[], None],
    is_aborted: Callable[[], bool],
) -> None:
    current: int | None = None
    try:
        if callable(subscription.handle_batch):
            invoke(subscription.handle_batch, events)
            check()
        else:
            assert subscription.handle is not None
            for number, event in enumerate(events):
                current = number
                if is_aborted():
                    raise ShuttingDown
                invoke(subscription.handle, event)
                check()
            current = None
        session.flush()
        check()
    except ShuttingDown:
        raise
    except (Exception, SystemExit) as error:  # a handler's exit is not the worker's
        raise BatchFailed(events, current) from error


@contextmanager
def _guarded(session: Session, name: str) -> Iterator[Callable[[], None]]:
    """Keep the handler's hands off the transaction: a commit is refused before it happens, a rollback is noticed."""
    transaction = session.get_transaction()
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
        if session.get_transaction() is not transaction or not session.is_active:
            raise HandlerTransactionError(
                f"the handler of consumer {name!r} rolled back, or ended by other means, the transaction that holds "
                "its checkpoint. Use session.begin_nested() for a part that may fail on its own"
            )

    sqlalchemy_event.listen(session, "before_commit", refuse)
    try:
        yield check
    finally:
        sqlalchemy_event.remove(session, "before_commit", refuse)
