"""The status of a log's workers: nodes, consumers, lag, failures, and what needs attention."""

from __future__ import annotations

from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.status._status import (
    HEARTBEAT_TIMEOUT,
    LAG_LIMIT,
    ConsumerStatus,
    FailingEvent,
    NodeStatus,
    PartitionStatus,
    Status,
    read_status,
    read_status_async,
)
from pupsourcing_sa.status.findings import Finding, StatusLimits, diagnose

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "LAG_LIMIT",
    "ConsumerStatus",
    "FailingEvent",
    "Finding",
    "LockHolder",
    "NodeStatus",
    "PartitionStatus",
    "Status",
    "StatusLimits",
    "diagnose",
    "read_status",
    "read_status_async",
]
