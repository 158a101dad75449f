"""The worker: runs consumers, each in transactions that also move its checkpoint.

A process is a *node*. Its event loop runs one *dispatcher*, which polls the stable position of the log, and one
*processor* for each partition that is assigned to the node. It also coordinates with other nodes. These parts share
only the tables and the stable position, which wakes the processors when it moves. See `lifecycle.service` for how they
start and stop, and `lifecycle.shutdown` for what happens on SIGTERM.

A batch is one transaction of one processor::

    lock the checkpoint row (FOR UPDATE SKIP LOCKED)     or skip the batch if another transaction has the lock
    read the scope's events in (checkpoint, stable]
    call the handler with the session
    flush, move the checkpoint, commit                   or roll back everything

The row lock, and reading the checkpoint under that lock, are the fence. Each event is applied once. This is true even
when the answer to a COMMIT is lost, or when two processes believe that they own the partition, for example because one
of them was suspended.

A failing event is isolated: the worker commits the events before it, then retries it alone with increasing delays.
Other consumers and partitions keep running.
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
