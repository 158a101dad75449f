"""What in a status needs somebody's attention. Decided here, shown elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.status._status import ConsumerStatus, FailingEvent, NodeStatus, PartitionStatus, Status

__all__ = [
    "Finding",
    "StatusLimits",
    "cause_of",
    "describe_event",
    "describe_transaction",
    "diagnose",
    "how_to_end",
    "is_ahead_of_log",
    "one_line",
]

_LONGEST_QUERY: Final = 100
_LONGEST_ERROR: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusLimits:
    """What is still well.

    Attributes:
        max_lag_events: so many events above a checkpoint; ``None``, the default, for any number. To be noticed it has
            to be counted: it must not be greater than the ``lag_limit`` that the status was read with.
        max_lag_seconds: so old may the first event above a checkpoint be; ``None``, the default, for any age.
        max_stall_seconds: for so long may a transaction hold back events that others have committed.
        max_lock_seconds: for so long may a transaction that is not a batch of the node that a partition is assigned to
            have its checkpoint locked. Batches of another node, or a drain's, may well do that for a short time.
    """

    max_lag_events: int | None = None
    max_lag_seconds: float | None = None
    max_stall_seconds: float = 60.0
    max_lock_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that needs attention.

    Attributes:
        kind: ``no_node``, ``silent_node``, ``held_back``, ``ahead_of_log``, ``no_node_for_consumer``, ``unassigned``,
            ``parked``, ``failing``, ``locked`` or ``lagging``.
        message: one line that says what, and what to do where that is not obvious.
    """

    kind: str
    message: str


def diagnose(status: Status, limits: StatusLimits | None = None) -> list[Finding]:
    """What in a status needs attention, the widest first; empty when all is well.

    Args:
        status: what `read_status` found.
        limits: what is still well; `StatusLimits` has the defaults.

    What follows from something wider is left out: without a live node, consumers that no node has are not findings.
    """
    limits = limits or StatusLimits()
    findings = []
    if status.consumers and not status.has_live_node:
        findings.append(
            Finding("no_node", f"no live node: none of {len(status.consumers)} consumers is running; start a worker")
        )
    findings += [_silent(node) for node in status.nodes if node.is_silent]
    if status.held_back_seconds > limits.max_stall_seconds:
        findings.append(_held_back(status, limits.max_stall_seconds))
    for consumer in status.consumers:
        findings += _ahead(consumer, status.last_issued)
        if status.has_live_node:
            findings += _unmanned(consumer)
        for partition in consumer.partitions:
            findings += _troubled(f"{_name(consumer)} partition {partition.partition}", partition, limits)
    return findings


def _name(consumer: ConsumerStatus) -> str:
    return f"consumer {consumer.name!r}"


def _silent(node: NodeStatus) -> Finding:
    return Finding(
        "silent_node",
        f"node {node.worker_id} ({one_line(node.hostname)}, pid {node.pid}) is silent for {node.heartbeat_age:.0f} s",
    )


def _held_back(status: Status, allowed: float) -> Finding:
    holder = status.blocking[0]
    return Finding(
        "held_back",
        f"the stable position is held back at {status.stable_position}, for {status.held_back_seconds:.0f} s "
        f"({allowed:g} s allowed), by {describe_transaction(holder)}; to end it: {how_to_end(holder)}",
    )


def is_ahead_of_log(partition: PartitionStatus, last_issued: int) -> bool:
    """Whether events that are still to come have positions that the consumer takes for done."""
    return partition.position > last_issued


def _ahead(consumer: ConsumerStatus, last_issued: int) -> Iterator[Finding]:
    positions = [each.position for each in consumer.partitions if is_ahead_of_log(each, last_issued)]
    if positions:
        yield Finding(
            "ahead_of_log",
            f"{_name(consumer)} has come to position {max(positions)}, and the log has only issued {last_issued}, as "
            "after TRUNCATE with RESTART IDENTITY or a restore of the log alone: events up to there will be skipped; "
            "stop the workers, then delete its checkpoints and what it wrote, so that it begins anew, or restore these "
            "from the log's backup",
        )


def _unmanned(consumer: ConsumerStatus) -> Iterator[Finding]:
    if not consumer.live_nodes:
        yield Finding(
            "no_node_for_consumer",
            f"{_name(consumer)} is known to no live node: start a worker that has it or, if it was removed for good, "
            "delete its rows from the tables of assignments and checkpoints",
        )
        return
    unassigned = [partition.partition for partition in consumer.partitions if partition.worker_id is None]
    if unassigned:
        which = f"partition {unassigned[0]} is"
        if len(unassigned) > 1:
            which = f"partitions {', '.join(map(str, unassigned))} are"
        yield Finding("unassigned", f"{_name(consumer)} {which} assigned to no node")


def _troubled(name: str, partition: PartitionStatus, limits: StatusLimits) -> Iterator[Finding]:
    failing = partition.failing
    if failing is not None:
        what = f"on {describe_event(failing)}: {cause_of(failing)}"
        if failing.parked_at is None:
            yield Finding("failing", f"{name} is failing {what}")
        else:
            yield Finding("parked", f"{name} is parked {what}; deal with it, then set its parked_at to NULL")
    holder, allowed = partition.locked_by, limits.max_lock_seconds
    if holder is not None and partition.locked_seconds > allowed:
        yield Finding(
            "locked",
            f"{name} is locked for {partition.locked_seconds:.0f} s ({allowed:g} s allowed), by "
            f"{describe_transaction(holder)}; to end it: {how_to_end(holder)}",
        )
    most_events, most_seconds = limits.max_lag_events, limits.max_lag_seconds
    if most_events is not None and partition.lag_events > most_events:
        count = f"{partition.lag_events:,}" if partition.is_lag_exact else f"at least {partition.lag_events:,}"
        yield Finding("lagging", f"{name} is {count} events behind ({most_events:,} allowed)")
    if most_seconds is not None and partition.lag_seconds > most_seconds:
        yield Finding("lagging", f"{name} is {partition.lag_seconds:,.0f} s behind ({most_seconds:g} s allowed)")


def describe_event(failing: FailingEvent) -> str:
    """Which event it is, and how often it was tried."""
    if failing.position is None:
        return "no event in particular"
    which = f"event {failing.position}"
    if failing.event_id is not None:
        which += f" ({one_line(failing.event_type or '')} {failing.event_id})"
    return f"{which}, attempts {failing.attempts}" if failing.attempts else f"{which}, no attempt counted"


def cause_of(failing: FailingEvent) -> str:
    """The line of the traceback that has the exception."""
    last = (failing.error or "").rpartition("Traceback (most recent call last):")[2]
    lines = [line for line in last.splitlines() if any(map(str.isalnum, line))]
    if not lines:
        return "no error is recorded"
    # The lines of an ExceptionGroup are all indented, and framed; its last one says most.
    found = next((line for line in lines if not line[0].isspace()), lines[-1].strip(" |+-"))
    return one_line(found, _LONGEST_ERROR)


def describe_transaction(holder: LockHolder) -> str:
    """Whose transaction it is, and what it does."""
    who = f"pid {holder.pid}" if holder.gid is None else f"prepared transaction {holder.gid!r}"
    if holder.application_name:
        who += f" {holder.application_name!r}"
    facts = [who] if holder.user is None else [who, f"role {holder.user}"]
    if holder.gid is None and holder.state is not None:
        facts.append(holder.state)
    if holder.age is not None:
        facts.append(f"{'prepared' if holder.gid else 'begun'} {holder.age.total_seconds():.0f} s ago")
    if holder.query:
        facts.append(f"last statement: {one_line(holder.query, _LONGEST_QUERY)}")
    return one_line(", ".join(facts))


def how_to_end(holder: LockHolder) -> str:
    """The statement that ends it, to be executed by somebody who may."""
    if holder.gid is not None:
        return "COMMIT PREPARED or ROLLBACK PREPARED '{}'".format(holder.gid.replace("'", "''"))
    return f"SELECT pg_terminate_backend({holder.pid})"


def one_line(text: str, most: int | None = None) -> str:
    """Text from elsewhere, without what would break a line or be an order to a terminal."""
    line = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(text.split()))
    return line if most is None or len(line) <= most else line[: most - 1] + "…"
