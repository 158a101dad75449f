"""The status as a report for people: problems first, then tables. Needs rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from uuid import UUID

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from pupsourcing_sa.printable import one_line
from pupsourcing_sa.status import ConsumerStatus, NodeStatus, PartitionStatus, Status
from pupsourcing_sa.status.descriptions import cause_of, describe_event, describe_transaction, how_to_end
from pupsourcing_sa.status.findings import Finding, is_ahead_of_log, notes

__all__ = ["print_report"]


def print_report(console: Console, status: Status, findings: Iterable[Finding]) -> None:
    """Print the report. Tables fit into the console; problems and explanations are single lines of any length."""

    def write(line: str, style: str = "") -> None:
        # A Text, because rich would interpret brackets in data as markup.
        console.print(Text(line, style=style), soft_wrap=True)

    findings = list(findings)
    for finding in findings:
        write(f"problem: {finding.message}", "bold red")
    if not findings:
        write("ok: no problems found", "green")
    for note in notes(status):
        write(f"note: {note}")
    write("")
    write(
        f"log: last position {status.last_position:,}, stable position {status.stable_position:,}, "
        f"at {status.taken_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    if status.blocking and status.stable_position < status.last_position:
        first = status.blocking[0]
        write(
            f"newer events are held back for up to {_time(status.held_back_seconds)}, by {describe_transaction(first)}"
        )
        write(f"  to end it: {how_to_end(first)}")
    console.print(_nodes(status) if status.nodes else Text("\nno nodes"))
    console.print(_consumers(status) if status.consumers else Text("\nno consumers"))
    partitions = [(consumer, partition) for consumer in status.consumers for partition in consumer.partitions]
    sections = {
        "Batches": [line for node in status.nodes for line in _batches(node)],
        "Failures": [line for pair in partitions for line in _failure(*pair, status.taken_at)],
        "Locks": [line for pair in partitions for line in _lock(*pair)],
    }
    for title, lines in sections.items():
        if lines:
            write(f"\n{title}", "bold")
        for line in lines:
            write(line)


def _table(title: str, *columns: tuple[str, JustifyMethod]) -> Table:
    table = Table(
        box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left", title_style="bold", header_style="dim"
    )
    for name, justify in columns:
        # Fold, so that a narrow console shows everything.
        table.add_column(name, justify=justify, overflow="fold")
    return table


def _add(table: Table, *cells: str, is_ok: bool) -> None:
    table.add_row(*(Text(one_line(cell)) for cell in cells), style=None if is_ok else "red")


def _nodes(status: Status) -> Table:
    assigned = Counter(partition.worker_id for consumer in status.consumers for partition in consumer.partitions)
    table = _table(
        "Nodes",
        ("node", "left"),
        ("host", "left"),
        ("pid", "right"),
        ("heartbeat", "right"),
        ("started", "right"),
        ("consumers", "right"),
        ("partitions", "right"),
    )
    for node in status.nodes:
        _add(
            table,
            _short(node.worker_id),
            node.hostname,
            str(node.pid),
            f"{_time(node.heartbeat_age)} ago",
            f"{_time((status.taken_at - node.started_at).total_seconds())} ago",
            str(len(node.consumers)),
            str(assigned[node.worker_id]),
            is_ok=not node.is_silent,
        )
    return table


def _consumers(status: Status) -> Table:
    silent = {node.worker_id for node in status.nodes if node.is_silent}
    table = _table(
        "Consumers",
        ("consumer", "left"),
        ("partition", "right"),
        ("node", "left"),
        ("checkpoint", "right"),
        ("lag", "right"),
        ("lag age", "right"),
        ("state", "left"),
    )
    for consumer in status.consumers:
        for partition in consumer.partitions:
            state = _state(consumer, partition, silent, status.last_issued)
            _add(
                table,
                consumer.name,
                str(partition.partition),
                _short(partition.worker_id),
                f"{partition.position:,}",
                f"{partition.lag_events:,}" if partition.is_lag_exact else f">{partition.lag_events - 1:,}",
                _time(partition.lag_seconds) if partition.lag_events else "",
                state,
                is_ok=state in ("assigned", "stopped"),
            )
    return table


def _state(consumer: ConsumerStatus, partition: PartitionStatus, silent: set[UUID], last_issued: int) -> str:
    if is_ahead_of_log(partition, last_issued):
        return "ahead of log"
    if consumer.is_stopped:
        return "stopped"
    if partition.failing is not None:
        return "failing" if partition.failing.parked_at is None else "parked"
    if not consumer.live_nodes:
        return "no node"
    if partition.worker_id is None:
        return "unassigned"
    if partition.worker_id in silent:
        return "node silent"
    return "assigned" if partition.locked_by is None else "locked"


def _batches(node: NodeStatus) -> Iterator[str]:
    for batch in node.batches:
        at = "reading" if batch.position is None else f"event {batch.position}"
        name = f"{one_line(batch.consumer)}/{batch.partition}"
        yield f"{name}: {at}, for {_time(batch.seconds)} at the last heartbeat of node {_short(node.worker_id)}"


def _failure(consumer: ConsumerStatus, partition: PartitionStatus, now: datetime) -> Iterator[str]:
    failing = partition.failing
    if failing is None:
        return
    facts = [describe_event(failing)]
    if failing.failed_at is not None:
        facts.append(f"last failure {_time((now - failing.failed_at).total_seconds())} ago")
    if failing.parked_at is not None:
        facts.append(f"parked {_time((now - failing.parked_at).total_seconds())} ago")
    elif failing.retry_at is not None:
        seconds = (failing.retry_at - now).total_seconds()
        facts.append(f"next retry in {_time(seconds)}" if seconds > 0 else "next retry is due")
    yield f"{one_line(consumer.name)}/{partition.partition}: {', '.join(facts)}"
    yield f"  {cause_of(failing)}"


def _lock(consumer: ConsumerStatus, partition: PartitionStatus) -> Iterator[str]:
    holder = partition.locked_by
    if holder is None:
        return
    seconds, transaction = _time(partition.locked_seconds), describe_transaction(holder)
    yield f"{one_line(consumer.name)}/{partition.partition}: locked for up to {seconds}, by {transaction}"
    yield f"  to end it: {how_to_end(holder)}"


def _short(worker_id: UUID | None) -> str:
    """Return the first digits of a random id. They distinguish a few nodes; ``--json`` has the whole id."""
    return "-" if worker_id is None else str(worker_id)[:8]


def _time(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(seconds, 0.0):.{1 if seconds < 10 else 0}f} s"
