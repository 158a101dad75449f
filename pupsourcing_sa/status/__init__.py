"""The status of a log's workers: nodes, consumers, lag, failures, and the problems among them.

`read_status` reads the tables and returns a `Status`; `diagnose` returns its problems.
"""

from __future__ import annotations

from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.status._read import HEARTBEAT_TIMEOUT, LAG_LIMIT, read_status, read_status_async
from pupsourcing_sa.status.findings import Finding, StatusLimits, diagnose
from pupsourcing_sa.status.model import (
    SUSPICIOUS_DEATHS,
    ConsumerStatus,
    FailingEvent,
    NodeStatus,
    PartitionStatus,
    RunningBatch,
    Status,
)

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "LAG_LIMIT",
    "SUSPICIOUS_DEATHS",
    "ConsumerStatus",
    "FailingEvent",
    "Finding",
    "LockHolder",
    "NodeStatus",
    "PartitionStatus",
    "RunningBatch",
    "Status",
    "StatusLimits",
    "diagnose",
    "read_status",
    "read_status_async",
]
