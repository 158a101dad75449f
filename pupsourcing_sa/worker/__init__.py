"""The worker: runs consumers, each in transactions that also move its checkpoint.

A process is a *node* among others. Its event loop runs one *dispatcher*, which watches the log's stable position, one
*processor* for each partition that is assigned to the node, and what keeps it a node. They share two things: the
stable position, whose moves wake the processors up, and the tables.

A batch is one transaction of one processor::

    lock the checkpoint row (FOR UPDATE SKIP LOCKED)     not obtained: somebody else is at work on it, leave
    read the scope's events in (checkpoint, stable]
    call the handler with the session
    flush, move the checkpoint, commit                   or roll back all of it

The row lock, and reading the checkpoint again under it, are the fence: whoever else believes to own the partition, a
process that was stopped and goes on, or one whose commit was never answered, an event is applied once.

A failing event is isolated: what precedes it in its batch is committed first, then it is tried alone, again and again
with growing pauses. Other consumers go on meanwhile.
"""

from __future__ import annotations

from pupsourcing_sa.status import (
    ConsumerStatus,
    FailingEvent,
    Finding,
    LockHolder,
    NodeStatus,
    PartitionStatus,
    Status,
    StatusLimits,
    diagnose,
    read_status,
    read_status_async,
)
from pupsourcing_sa.worker._worker import Worker
from pupsourcing_sa.worker.config import WorkerConfig

__all__ = [
    "ConsumerStatus",
    "FailingEvent",
    "Finding",
    "LockHolder",
    "NodeStatus",
    "PartitionStatus",
    "Status",
    "StatusLimits",
    "Worker",
    "WorkerConfig",
    "diagnose",
    "read_status",
    "read_status_async",
]
