"""The fence: two processes that both believe that they own a partition apply every event once.

A test runs batches of both, one after the other or one inside the other, as if the processes were interleaved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.worker.processing.batch import BatchRequest, BatchTransaction
from pupsourcing_sa.worker.processing.outcomes import BatchInterrupted, BatchResult
from pupsourcing_sa.worker.processing.overdue import BatchProgress
from tests.fix_processing import assign, context_of
from tests.fix_worker import INSERT, Fleet


class Owner:
    """A process that remembers its last batch, as a processor does."""

    def __init__(self, fleet: Fleet, during: Callable[[], None] = lambda: None) -> None:
        @consumer("all")
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(INSERT, {"consumer": "all", "position": event.global_position})
            during()

        context = context_of(handle, execution=None, store=fleet.store, tables=fleet.tables)
        assign(fleet.engine, fleet.tables, "all")
        self._engine = fleet.engine
        self._transaction = BatchTransaction(context, is_stopping=lambda: False)
        self._last = BatchResult(scanned=0, checkpoint=-1, handled=0)

    def run(self, max_events: int = 2) -> BatchResult | None:
        request = BatchRequest(
            last=self._last,
            up_to=100,
            server_identity=None,
            max_events=max_events,
            window=100,
            checkpoint_threshold=100,
            ends_at=float("inf"),
        )
        with Session(self._engine) as session:

            def bind(handler: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
                return lambda event: handler(session, event)

            result = self._transaction.run(session, bind, request, BatchProgress(0.0))
        self._last = result or self._last
        return result


def test_a_position_from_memory_counts_only_where_it_was_left(sync_fleet: Fleet):
    fleet = sync_fleet
    fleet.append(7)
    one, other = Owner(fleet), Owner(fleet)
    for owner in (one, other, one, other):
        owner.run()
    assert fleet.seen("all") == [1, 2, 3, 4, 5, 6, 7]
    assert fleet.checkpoint("all").last_position == 100  # the last page was not full: the scope is done up to there


def test_a_checkpoint_that_was_moved_back_is_followed(sync_fleet: Fleet):
    fleet = sync_fleet
    fleet.append(4)
    owner = Owner(fleet)
    owner.run()
    fleet.query("UPDATE consumer_checkpoints SET last_position = 1", commit=True)
    owner.run()
    assert fleet.seen("all") == [1, 2, 2, 3]


def test_the_checkpoint_of_a_running_batch_is_locked(sync_fleet: Fleet):
    fleet = sync_fleet
    results: list[BatchResult | None] = []
    other = Owner(fleet)
    fleet.append(3)
    assert Owner(fleet, during=lambda: results.append(other.run())).run(max_events=3) is not None
    assert results == [None, None, None]
    assert fleet.seen("all") == [1, 2, 3]


def test_a_batch_without_the_lock_at_its_end_leaves_nothing(sync_fleet: Fleet):
    fleet = sync_fleet
    fleet.append(2)

    def end() -> None:
        backends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        fleet.query(f"{backends} AND datname = current_database() AND pid <> pg_backend_pid()")

    owner, other = Owner(fleet, during=end), Owner(fleet)
    with pytest.raises(BatchInterrupted):
        owner.run()
    assert fleet.seen("all") == []
    assert other.run() is not None
    assert fleet.seen("all") == [1, 2]
