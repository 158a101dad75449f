"""The status of a log's workers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from pupsourcing_sa.errors import StablePositionError
from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.store import BlockingAppend

__all__ = [
    "SUSPICIOUS_DEATHS",
    "ConsumerStatus",
    "FailingEvent",
    "NodeStatus",
    "PartitionStatus",
    "RunningBatch",
    "Status",
    "read_batches",
    "read_object",
]

_T = TypeVar("_T")

#: Number of nodes that must have died in the batches of a partition before an event is suspected.
SUSPICIOUS_DEATHS: Final = 2


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch that a node was running at its last heartbeat.

    Attributes:
        consumer: name of the consumer.
        partition: number of the partition.
        position: position of the current event, or of the first one; ``None`` before the events are read.
        seconds: seconds since the batch began.
    """

    consumer: str
    partition: int
    position: int | None
    seconds: float


def read_batches(value: object) -> list[RunningBatch]:
    """Return the batches of a JSON array; none if there is no array."""
    batches = [read_object(RunningBatch, item) for item in value] if isinstance(value, list) else []
    return [batch for batch in batches if batch is not None]


def read_object(cls: type[_T], value: object) -> _T | None:
    """Return the dataclass of a JSON object that a node of another version may have written.

    Keys that this version does not have are ignored.

    Returns:
        ``None`` if a key is missing, or if it is not an object.
    """
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if not isinstance(value, Mapping) or not value.keys() >= set(names):
        return None
    return cls(**{name: value[name] for name in names})


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A worker process.

    Attributes:
        worker_id: its ``Worker.id``.
        hostname: name of its machine.
        pid: its process id on that machine.
        consumers: names of the consumers that it includes, sorted.
        started_at: time at which it registered.
        heartbeat_age: seconds since its last heartbeat.
        is_silent: True if the heartbeat is older than the heartbeat timeout, so that the node is presumed dead.
        batches: the batches that it was running at its last heartbeat.
    """

    worker_id: UUID
    hostname: str
    pid: int
    consumers: tuple[str, ...]
    started_at: datetime
    heartbeat_age: float
    is_silent: bool
    batches: tuple[RunningBatch, ...] = ()


@dataclass(frozen=True, slots=True)
class FailingEvent:
    """The event that blocks a partition, because its handler fails.

    Attributes:
        position: its global position; ``None`` if the checkpoint has none, such as after parking a partition by hand.
        event_id: its id; ``None`` if the log does not have the event.
        event_type: its type; ``None`` if the log does not have the event.
        error: traceback of the last attempt.
        attempts: number of failed attempts. Failures that no event causes, such as outages, do not count.
        failed_at: time of the last attempt.
        retry_at: time of the next attempt; ``None`` while the partition is parked.
        parked_at: time at which the partition was parked; it stays parked until an operator sets this column to NULL.
            ``None`` if it is not parked.
    """

    position: int | None
    event_id: UUID | None
    event_type: str | None
    error: str | None
    attempts: int
    failed_at: datetime | None
    retry_at: datetime | None
    parked_at: datetime | None


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """A partition of a consumer.

    Attributes:
        partition: its number, from 0.
        worker_id: node that it is assigned to; ``None`` if it is unassigned.
        position: its checkpoint.
        lag_events: number of events in the log above its checkpoint, of every type and partition.
        is_lag_exact: True if `lag_events` is exact; otherwise there are at least this many.
        lag_seconds: seconds since ``created_at`` of the first of these events; 0 if there is none.
        failing: the event that blocks the partition; ``None`` if there is none.
        locked_by: transaction that locks the checkpoint and is not a batch of the assigned node. The node waits for it.
            ``None`` if there is none, or if PostgreSQL does not expose it: several transactions share the lock, or the
            lock was taken under a savepoint that was released.
        locked_seconds: upper bound of the seconds for which that transaction has held the lock; 0 if there is none. It
            does not exceed `lag_seconds` if this session may not see the transaction's age.
        deaths: number of nodes that died while they had the partition, since a batch moved the checkpoint.
    """

    partition: int
    worker_id: UUID | None
    position: int
    lag_events: int
    is_lag_exact: bool
    lag_seconds: float
    failing: FailingEvent | None
    locked_by: LockHolder | None
    locked_seconds: float
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A consumer that has rows in the worker's tables.

    Attributes:
        name: its name.
        live_nodes: number of nodes that include it and are not silent.
        partitions: its partitions, in order.
        is_stopped: True if it is not supposed to run: it was stopped in an orderly way, or only drained. It has
            checkpoints and no assignments.
    """

    name: str
    live_nodes: int
    partitions: tuple[PartitionStatus, ...]
    is_stopped: bool = False

    @property
    def lag_seconds(self) -> float:
        """The largest lag of its partitions, in seconds."""
        return max(partition.lag_seconds for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class Status:
    """The result of `read_status`.

    Attributes:
        taken_at: time of the status by the database's clock, in UTC.
        last_position: last position in the log; 0 if the log is empty.
        last_issued: last position that the log has issued. The event may be uncommitted, rolled back or deleted; the
            next event gets a higher position. A checkpoint above it belongs to another log.
        stable_position: consumers can read up to this position, unless there is a `log_problem`.
        held_back_seconds: upper bound of the seconds for which a transaction has held back committed events from
            consumers; 0 if none does.
        blocking: unfinished transactions that have appended. The first one determines the stable position.
        nodes: the worker processes, oldest first.
        consumers: the consumers, by name.
        log_problem: the error that reading the stable position raises, `SequenceBehindLogError` or
            `ReplicatedLogError`; ``None`` if there is none.
    """

    taken_at: datetime
    last_position: int
    last_issued: int
    stable_position: int
    held_back_seconds: float
    blocking: tuple[BlockingAppend, ...]
    nodes: tuple[NodeStatus, ...]
    consumers: tuple[ConsumerStatus, ...]
    log_problem: StablePositionError | None = None

    @property
    def head(self) -> int:
        """The same as `last_position`, under its former name."""
        return self.last_position

    @property
    def has_live_node(self) -> bool:
        """True if at least one node is not silent."""
        return any(not node.is_silent for node in self.nodes)

    def to_dict(self) -> dict[str, Any]:
        """Return the status as plain values for JSON: times in ISO 8601, durations in seconds, ids as strings."""
        plain: dict[str, Any] = _plain(asdict(self) | {"head": self.head})
        return plain


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID() | StablePositionError():
            return str(value)
        case _:
            return value
