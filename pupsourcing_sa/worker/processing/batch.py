"""The batch: one transaction that handles events and moves the checkpoint.

**The fence.** Assignments are hints. Two processes may believe that they own the same partition, for example when a
node that was presumed dead resumes. Two things keep an event from being applied twice: the row lock on the checkpoint,
and re-reading the position under that lock::

    process A                                      process B, which believes that it owns the partition
    ─────────                                      ────────────────────────────────────────────────────
    begin   REPEATABLE READ
    lock    SELECT … FOR UPDATE SKIP LOCKED
            takes the snapshot: position 40
    read    events 41 to 60                        lock    the row is locked: no batch, retry later
    handle  the handler writes, in this
            transaction                            begin   a statement takes a snapshot: position 40
    move    UPDATE … position 60
    commit  writes and checkpoint together
                                                   lock    40001, as the row is newer than the snapshot: retry
                                                   begin
                                                   lock    a new snapshot: position 60, as A has committed it
                                                   read    events 61 to 80

- The statement that takes the lock reads the position, so no other transaction can move it in between.
- A batch that does not commit leaves nothing: neither writes nor a moved checkpoint.
- A frozen process keeps the lock until its connection ends. When it resumes, its connection is closed and its batch is
  rolled back. See `pupsourcing_sa.worker.processing.lock_watch`.
- ``move`` refuses if this transaction no longer holds the lock: a handler may have executed ROLLBACK.
- A process remembers how far it has scanned. It uses this only if the checkpoint is where its last batch left it.

**The snapshot.** A batch runs under REPEATABLE READ, unless its consumer chooses another level. It reads everything in
one snapshot, and a write to a row that has changed since fails with a serialization failure. That is a lost race, which
the worker retries.

- The lock is the first statement of the worker in the transaction, so it usually takes the snapshot. An event of the
  session, such as ``after_begin``, may execute SQL before. Then the snapshot is older than the lock.
- The snapshot is never older than the stable position. The dispatcher reads the stable position first, and the
  transaction of the batch begins later. All events up to the stable position are in the snapshot.
- PostgreSQL refuses the lock with 40001 if a transaction that is not in the snapshot has **updated** or deleted the
  row. It does not refuse it if that transaction has only locked the row. Therefore a transaction that locks a
  checkpoint and changes anything that the lock guards also updates the row, even to equal values. The worker's own
  transactions do: a batch with events moves the checkpoint, and a recorded failure is written to the row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from pupsourcing_sa.context import causes
from pupsourcing_sa.errors import PartitionParkedError, StablePositionError
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.worker.execution.protocol import BindHandler
from pupsourcing_sa.worker.processing.byte_budget import BoundedPages
from pupsourcing_sa.worker.processing.careful import CarefulMode, is_suspicious
from pupsourcing_sa.worker.processing.checkpoints import LockedCheckpoint
from pupsourcing_sa.worker.processing.context import PartitionContext
from pupsourcing_sa.worker.processing.diagnosis import LockedTransaction, raise_outcome
from pupsourcing_sa.worker.processing.handler_guard import HandlerGuard, is_for_worker
from pupsourcing_sa.worker.processing.outcomes import BatchResult, NodesDied, RetryLater, ShuttingDown
from pupsourcing_sa.worker.processing.overdue import BatchProgress

__all__ = ["BatchRequest", "BatchTransaction"]

_logger = logging.getLogger("pupsourcing_sa.worker")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The parameters of one batch.

    Attributes:
        last: result of the previous batch.
        up_to: a stable position; events after it are not read.
        server_identity: the server and database of ``up_to``; ``None`` to trust that it is the session's.
        max_events: maximum number of events. An event that has failed before is handled alone.
        window: maximum number of positions to read. A gap in the log that follows them counts as read.
        checkpoint_threshold: number of positions without events of the scope after which the checkpoint moves.
        ends_at: time after which no other event is handled, and the batch commits. A ``handle_batch`` gets all events
            at once, so it does not apply.
        is_contended: flush after the 1st, 2nd, 4th, 8th … event, because the last batches have lost races.
        ignore_retry_time: retry a failing event before its time.
        careful: the careful mode; ``None`` if the batch may have several events.
    """

    last: BatchResult
    up_to: int
    server_identity: str | None
    max_events: int
    window: int
    checkpoint_threshold: int
    ends_at: float
    is_contended: bool = False
    ignore_retry_time: bool = False
    careful: CarefulMode | None = None


@dataclass(frozen=True, slots=True)
class _Page:
    """Events to handle; ``end`` is the position up to which the scope is done when all of them are handled."""

    events: Sequence[PersistedEvent]
    end: int
    server_identity: str

    def end_after(self, handled: int) -> int:
        return self.end if handled == len(self.events) else self.events[handled - 1].global_position


class BatchTransaction:
    """The transaction of a batch; one object runs all batches of a partition, one after the other.

    Args:
        context: the partition.
        is_stopping: returns True once the batch must end with the current event. The event loop sets it, and the
            batch's thread reads it.
    """

    def __init__(self, context: PartitionContext, is_stopping: Callable[[], bool]) -> None:
        self._context = context
        self._checkpoint = context.checkpoint
        self._is_stopping = is_stopping
        #: Time at which the process started; ``None`` once it was compared with the failure that the processor found.
        self._started_at = context.started_at
        subscription, config = context.subscription, context.config
        self._bytes = BoundedPages(
            subscription.batch_bytes or config.batch_bytes, subscription.batch_size or config.batch_size
        )

    def run(
        self, session: Session, bind: BindHandler, request: BatchRequest, progress: BatchProgress
    ) -> BatchResult | None:
        """Handle the next events and move the checkpoint: lock, read, handle, move, commit.

        Args:
            session: a session without a transaction.
            bind: binds the handler to the session.
            request: the parameters of this batch.
            progress: is updated while the batch runs.

        Returns:
            ``None`` if another transaction has locked the checkpoint, or the next event cannot be announced now.

        Raises:
            BatchFailed: from the exception of the handler.
            BatchInterrupted: from an exception of the handler or the commit that no event caused.
            BatchCommitted: from a `HandlerTransactionError`: the handler has committed.
            NodesDied: the next event must be handled in careful mode.
            PartitionParkedError: the partition is parked.
            RetryLater: the next event has failed, and its next attempt is not due.
            ShuttingDown: the worker rolls back running batches.
            StablePositionError: the session is connected to another server or database than ``up_to`` belongs to.
        """
        locked = self._lock(session, request)
        if locked is None:
            return None
        page = self._read(session, locked, request)
        if page.events and request.careful is not None:
            announced = self._announce(session, page.events[0], request)
            if announced is None:
                return None
            locked, page = announced
        elif page.events and self._is_dangerous(locked):
            raise NodesDied(locked.deaths)
        transaction = LockedTransaction(session, self._checkpoint.connection(session), self._checkpoint, locked)
        handled = self._handle(transaction, bind, page, request, progress) if page.events else 0
        if self._context.is_aborted():
            raise ShuttingDown
        scanned, position, is_moved = page.end_after(handled), locked.position, False
        try:
            if handled or scanned - position >= request.checkpoint_threshold:
                is_careful = request.careful is not None and request.careful.after(handled, scanned) is not None
                self._checkpoint.move(session, scanned, locked, deaths=locked.deaths if is_careful else 0)
                position, is_moved = scanned, True
            session.commit()
        except Exception as error:
            if not handled:
                raise
            # The commit may fail, too, for example on a deferred constraint.
            raise_outcome(error, transaction, progress, is_moved=is_moved)
        return BatchResult(scanned, position, handled, locked.attempts, page.server_identity)

    def _lock(self, session: Session, request: BatchRequest) -> LockedCheckpoint | None:
        """Lock the checkpoint's row and read it; refuse a batch that must not run now."""
        locked = self._checkpoint.lock(
            session, isolation=self._context.subscription.isolation, worker_id=self._context.worker_id
        )
        if locked is None:
            return None
        if locked.is_parked:
            failed = locked.position if locked.failed_position is None else locked.failed_position
            raise PartitionParkedError(self._context.subscription.name, self._context.scope.partition, failed)
        if locked.retry_after > 0 and not request.ignore_retry_time and not self._is_new_to_failure(session, locked):
            raise RetryLater(locked.retry_after)
        return locked

    def _is_new_to_failure(self, session: Session, locked: LockedCheckpoint) -> bool:
        """Return True if this process started after the failure, perhaps with a corrected handler.

        It then retries the event before its time, once: the next failure is younger than the process.
        """
        if self._is_dangerous(locked):
            return False  # after a death every process is new, so there would be no delay
        started_at, self._started_at = self._started_at, None
        if started_at is None or not self._checkpoint.failed_before(session, started_at):
            return False
        _logger.info("process started after the failure; retrying the event now", extra=self._context.details)
        return True

    def _is_dangerous(self, locked: LockedCheckpoint) -> bool:
        return self._context.announcements is not None and is_suspicious(locked.deaths)

    def _announce(
        self, session: Session, event: PersistedEvent, request: BatchRequest
    ) -> tuple[LockedCheckpoint, _Page] | None:
        """Announce the next event and commit, then lock the checkpoint and read again.

        Returns:
            ``None`` if the event cannot be announced, or is no longer the next one.
        """
        context = self._context
        assert context.announcements is not None
        if not context.announcements.write(session, context.announcement_of(event)):
            return None
        session.commit()
        locked = self._lock(session, request)
        if locked is None:
            return None
        page = self._read(session, locked, request)
        is_next = [found.global_position for found in page.events] == [event.global_position]
        return (locked, page) if is_next else None

    def _read(self, session: Session, locked: LockedCheckpoint, request: BatchRequest) -> _Page:
        """Read the events after the locked position."""
        store, log = self._context.store, self._context.store.tables.events
        # A session may have the log in another database than the checkpoint.
        is_same_database = self._checkpoint.is_beside(session, log)
        server_identity = locked.server_identity if is_same_database else store.reader.server_identity(session)
        if request.server_identity not in (None, server_identity):
            raise StablePositionError(
                "the stable position belongs to another server or database: the server has been restarted, or another "
                "one has taken its place. Read the stable position again"
            )
        last = request.last
        can_continue = last.checkpoint == locked.position and last.server_identity == server_identity
        after = last.scanned if can_continue else locked.position
        is_alone = locked.failed_position is not None or self._is_dangerous(locked)
        limit = 1 if is_alone else request.max_events
        up_to = min(request.up_to, after + request.window)
        page = self._bytes.read(partial(store.reader.page, session, self._context.scope, after, up_to), limit)
        if not page.events and up_to < request.up_to:
            # The next event may be far ahead, as in a log that was adopted with its positions.
            up_to = store.reader.end_of_gap(session, up_to, request.up_to)
        end = page.events[-1].global_position if page.has_more else max(after, up_to)
        return _Page(page.events, end, server_identity)

    def _handle(
        self,
        transaction: LockedTransaction,
        bind: BindHandler,
        page: _Page,
        request: BatchRequest,
        progress: BatchProgress,
    ) -> int:
        """Pass the events to the handler and flush its writes. Return the number of handled events."""
        session, subscription = transaction.session, self._context.subscription
        progress.events = page.events
        try:
            with HandlerGuard(session, transaction.connection, subscription.name) as guard, causes() as set_cause:
                if callable(subscription.handle_batch):
                    bind(subscription.handle_batch)(list(page.events))
                    guard.check()
                else:
                    assert subscription.handle is not None
                    self._handle_one_by_one(session, bind(subscription.handle), set_cause, guard, request, progress)
                session.flush()
        # BaseException, because sys.exit() in a handler must not end the worker. A failure of pytest must not, either.
        except BaseException as error:
            if is_for_worker(error, self._context.is_aborted):
                raise
            raise_outcome(error, transaction, progress, is_moved=False)
        return len(progress.events)

    def _handle_one_by_one(
        self,
        session: Session,
        call: Callable[[PersistedEvent], None],
        set_cause: Callable[[PersistedEvent], object],
        guard: HandlerGuard,
        request: BatchRequest,
        progress: BatchProgress,
    ) -> None:
        """Call the handler with one event after the other, until the batch must end."""
        clock, is_stopping, ends_at = self._context.clock, self._is_stopping, request.ends_at
        for number, event in enumerate(progress.events):
            progress.current = number
            set_cause(event)
            call(event)
            if guard.is_alarmed:
                guard.check()
            if request.is_contended and not number & (number + 1):
                session.flush()
            # This does not check is_aborted, because the worker stops before it aborts.
            if clock() >= ends_at or is_stopping():
                progress.events = progress.events[: number + 1]
                break
        progress.current = None
