"""Problems in a status. This module decides; the command line and the application show them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pupsourcing_sa.errors import ReplicatedLogError
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.status.descriptions import cause_of, describe_event, describe_transaction, how_to_end
from pupsourcing_sa.status.model import SUSPICIOUS_DEATHS, ConsumerStatus, NodeStatus, PartitionStatus, Status

__all__ = ["Finding", "StatusLimits", "diagnose", "is_ahead_of_log", "notes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusLimits:
    """Limits above which `diagnose` reports a problem.

    Attributes:
        max_lag_events: number of events above a checkpoint; ``None``, the default, for no limit. It must not exceed the
            ``lag_limit`` of `read_status`, because events beyond that are not counted.
        max_lag_seconds: age of the first event above a checkpoint, in seconds; ``None``, the default, for no limit.
        max_stall_seconds: seconds for which a transaction may hold back committed events.
        max_lock_seconds: seconds for which a transaction may lock a checkpoint, unless it is a batch of the assigned
            node. A batch of another node or of a drain can do this for a short time.
    """

    max_lag_events: int | None = None
    max_lag_seconds: float | None = None
    max_stall_seconds: float = 60.0
    max_lock_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem that needs attention.

    Attributes:
        kind: ``sequence_behind_log``, ``replicated_log``, ``no_node``, ``silent_node``, ``held_back``,
            ``ahead_of_log``, ``no_node_for_consumer``, ``unassigned``, ``parked``, ``failing``, ``nodes_died``,
            ``locked`` or ``lagging``.
        message: the problem in one line, with the remedy unless it is obvious.
    """

    kind: str
    message: str


def diagnose(status: Status, limits: StatusLimits | None = None) -> list[Finding]:
    """Return the problems in a status, the most far-reaching first; an empty list if there is none.

    Consequences of a larger problem are left out: if no node is live, consumers without a node are not reported. While
    nodes are live, a consumer that was stopped in an orderly way is no problem, whatever it failed on; see `notes`.

    Args:
        status: the result of `read_status`.
        limits: limits for lag, stalls and locks; by default those of `StatusLimits`.
    """
    limits = limits or StatusLimits()
    findings = list(_log(status))
    if status.consumers and not status.has_live_node:
        message = f"no node is running: none of {len(status.consumers)} consumers is processed. Start a worker"
        findings.append(Finding("no_node", message))
    findings += [_silent_node(node) for node in status.nodes if node.is_silent]
    if status.held_back_seconds > limits.max_stall_seconds:
        findings.append(_held_back(status, limits.max_stall_seconds))
    for consumer in status.consumers:
        findings += _ahead_of_log(consumer, status.last_issued)
        if status.has_live_node and consumer.is_stopped:
            continue
        if status.has_live_node:
            findings += _without_node(consumer)
        for partition in consumer.partitions:
            name = f"{_name(consumer)} partition {partition.partition}"
            findings += _failure(name, partition)
            findings += _deaths(name, partition)
            findings += _lock(name, partition, limits.max_lock_seconds)
            findings += _lag(name, partition, limits)
    return findings


def notes(status: Status) -> list[str]:
    """Return what is worth knowing and no problem: consumers that were stopped while other ones run."""
    stopped = [consumer for consumer in status.consumers if consumer.is_stopped and status.has_live_node]
    return [
        f"{_name(consumer)} is not running; it was stopped in an orderly way. If it was removed from the code, run "
        f"{_remove(consumer)}"
        for consumer in stopped
    ]


def is_ahead_of_log(partition: PartitionStatus, last_issued: int) -> bool:
    """Return True if future events will get positions that are already below the checkpoint."""
    return partition.position > last_issued


def _name(consumer: ConsumerStatus) -> str:
    return f"consumer {consumer.name!r}"


def _log(status: Status) -> Iterator[Finding]:
    if status.log_problem is not None:
        is_replicated = isinstance(status.log_problem, ReplicatedLogError)
        yield Finding("replicated_log" if is_replicated else "sequence_behind_log", str(status.log_problem))


def _remove(consumer: ConsumerStatus) -> str:
    return f"pupsourcing-sa consumers remove {one_line(shlex.quote(consumer.name))}"


def _silent_node(node: NodeStatus) -> Finding:
    return Finding(
        "silent_node",
        f"no heartbeat from node {node.worker_id} ({one_line(node.hostname)}, pid {node.pid}) for "
        f"{node.heartbeat_age:.0f} s. Check the process and its connection to the database",
    )


def _held_back(status: Status, limit: float) -> Finding:
    holder = status.blocking[0]
    return Finding(
        "held_back",
        f"the stable position has been stalled at {status.stable_position} for {status.held_back_seconds:.0f} s (limit "
        f"{limit:g} s) by {describe_transaction(holder)}; to end it: {how_to_end(holder)}",
    )


def _ahead_of_log(consumer: ConsumerStatus, last_issued: int) -> Iterator[Finding]:
    positions = [partition.position for partition in consumer.partitions if is_ahead_of_log(partition, last_issued)]
    if positions:
        yield Finding(
            "ahead_of_log",
            f"{_name(consumer)} is at position {max(positions)}, but the log has only issued {last_issued}, so it will "
            "skip new events. The log was truncated with RESTART IDENTITY, or restored without the checkpoints. Stop "
            "the workers. Then delete the consumer's checkpoints and what it wrote, or restore both from the log's "
            "backup",
        )


def _without_node(consumer: ConsumerStatus) -> Iterator[Finding]:
    if not consumer.live_nodes:
        yield Finding(
            "no_node_for_consumer",
            f"{_name(consumer)} has no running node: the last one did not stop in an orderly way. Start a worker that "
            f"includes it or, if the consumer was removed from the code, run {_remove(consumer)}",
        )
        return
    unassigned = [partition.partition for partition in consumer.partitions if partition.worker_id is None]
    if unassigned:
        subject = f"partition {unassigned[0]} is"
        if len(unassigned) > 1:
            subject = f"partitions {', '.join(map(str, unassigned))} are"
        yield Finding(
            "unassigned",
            f"{_name(consumer)} {subject} not assigned to a node. If this lasts for more than a few seconds, check the "
            "logs of the workers",
        )


def _failure(name: str, partition: PartitionStatus) -> Iterator[Finding]:
    failing = partition.failing
    if failing is None:
        return
    details = f"on {describe_event(failing)}: {cause_of(failing)}"
    if failing.parked_at is None:
        yield Finding("failing", f"{name} is failing {details}; the worker will retry")
    else:
        remedy = "fix the cause, then set parked_at in its row of consumer_checkpoints to NULL"
        yield Finding("parked", f"{name} is parked {details}; {remedy}")


def _deaths(name: str, partition: PartitionStatus) -> Iterator[Finding]:
    # A partition without events is not the reason for deaths, and a parked one waits for the operator.
    is_parked = partition.failing is not None and partition.failing.parked_at is not None
    if partition.deaths >= SUSPICIOUS_DEATHS and partition.lag_events and not is_parked:
        yield Finding(
            "nodes_died",
            f"{partition.deaths} nodes died while they processed {name}; the worker handles its events one by one to "
            "find the one that kills the process. Look for the reason in the logs of the processes and of the "
            "operating system",
        )


def _lock(name: str, partition: PartitionStatus, limit: float) -> Iterator[Finding]:
    holder = partition.locked_by
    if holder is not None and partition.locked_seconds > limit:
        yield Finding(
            "locked",
            f"{name} has been locked for {partition.locked_seconds:.0f} s (limit {limit:g} s) by "
            f"{describe_transaction(holder)}; to end it: {how_to_end(holder)}",
        )


def _lag(name: str, partition: PartitionStatus, limits: StatusLimits) -> Iterator[Finding]:
    max_events, max_seconds = limits.max_lag_events, limits.max_lag_seconds
    if max_events is not None and partition.lag_events > max_events:
        count = f"{partition.lag_events:,}" if partition.is_lag_exact else f"at least {partition.lag_events:,}"
        yield Finding("lagging", f"{name} is {count} events behind (limit {max_events:,})")
    if max_seconds is not None and partition.lag_seconds > max_seconds:
        yield Finding("lagging", f"{name} is {partition.lag_seconds:,.0f} s behind (limit {max_seconds:g} s)")
