"""Outcomes of a batch: the result of one that was committed, and the exceptions of those that were not.

::

    BatchResult            committed; None instead of it if another transaction has the checkpoint's lock
    RetryLater             rolled back: the next event has failed, and its next attempt is not due
    NodesDied              rolled back: nodes have died in this partition, and events must be handled one by one
    ShuttingDown           rolled back: the shutdown timeout is over
    BatchError
     ├── BatchFailed       rolled back: the handler failed; counts against an event
     ├── BatchInterrupted  rolled back: a lost race or an outage; counts against no event
     └── BatchCommitted    committed by the handler, without the checkpoint
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pupsourcing_sa.event import PersistedEvent

__all__ = [
    "BatchCommitted",
    "BatchError",
    "BatchFailed",
    "BatchInterrupted",
    "BatchResult",
    "NodesDied",
    "RetryLater",
    "ShuttingDown",
]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a committed batch.

    Attributes:
        scanned: every event of the scope up to this position is handled.
        checkpoint: position of the checkpoint in the table. It lags behind ``scanned`` if events are rare.
        handled: number of events that were handled.
        failures: number of earlier failures of the first event.
        server_identity: the server and database that ``scanned`` belongs to; ``None`` if nothing was scanned.
    """

    scanned: int
    checkpoint: int
    handled: int
    failures: int = 0
    server_identity: str | None = None


class BatchError(Exception):
    """A batch got events and was not committed by the worker. ``__cause__`` is the reason.

    Attributes:
        events: the events of the batch.
        failed: index of the failing event; ``None`` if it is not known.
    """

    def __init__(self, events: Sequence[PersistedEvent], failed: int | None) -> None:
        # The representation of the events would be the text of the exception in telemetry.
        super().__init__(f"batch of {len(events)} events")
        self.events = events
        self.failed = failed

    @property
    def event(self) -> PersistedEvent:
        """The failing event, or the first of the candidates."""
        return self.events[self.failed or 0]

    @property
    def is_isolated(self) -> bool:
        """True if the failing event is known to be the first of the batch."""
        return self.failed == 0 or (self.failed is None and len(self.events) == 1)


class BatchFailed(BatchError):
    """A handler failed, and the batch was rolled back."""


class BatchInterrupted(BatchError):
    """The batch was rolled back for a reason that no event caused."""


class BatchCommitted(BatchError):
    """A handler committed the transaction past SQLAlchemy, and the checkpoint has not moved.

    The cause is a `HandlerTransactionError`. Another run of the batch would apply its events twice.
    """


class RetryLater(Exception):
    """The next event has failed before, and its next attempt is due in ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class NodesDied(Exception):
    """Nodes have died in batches of the partition, so the next event must be handled in careful mode."""

    def __init__(self, deaths: int) -> None:
        super().__init__(deaths)
        self.deaths = deaths


class ShuttingDown(Exception):
    """The batch was rolled back, or not begun, because the worker stops."""
