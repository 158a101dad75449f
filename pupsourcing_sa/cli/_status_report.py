"""A status for people: what needs attention, then tables. Needs rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from pupsourcing_sa.status import ConsumerStatus, PartitionStatus, Status
from pupsourcing_sa.status.descriptions import cause_of, describe_event, describe_transaction, how_to_end, one_line
from pupsourcing_sa.status.findings import Finding, is_ahead_of_log

__all__ = ["print_report"]


def print_report(console: Console, status: Status, findings: Iterable[Finding]) -> None:
    """Print it. Findings and explanations are lines, however wide the console is; tables fit into it."""

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style=style), soft_wrap=True)  # Text: what comes from the database is not markup

    findings = list(findings)
    for finding in findings:
        say(f"attention: {finding.message}", "bold red")
    if not findings:
        say("well: nothing needs attention", "green")
    say("")
    positions = f"log at {status.last_position:,}, stable up to {status.stable_position:,}"
    say(f"{positions}, at {status.taken_at:%Y-%m-%d %H:%M:%S} UTC")
    if status.blocking and status.stable_position < status.last_position:
        first = status.blocking[0]
        say(f"held back for {_time(status.held_back_seconds)} at the most, by {describe_transaction(first)}")
        say(f"  to end it: {how_to_end(first)}")
    console.print(_nodes(status) if status.nodes else Text("\nno nodes"))
    console.print(_consumers(status) if status.consumers else Text("\nno consumers"))
    parts = [(consumer, partition) for consumer in status.consumers for partition in consumer.partitions]
    sections = {
        "Failures": [line for part in parts for line in _failure(*part, status.taken_at)],
        "Locks": [line for part in parts for line in _lock(*part)],
    }
    for title, lines in sections.items():
        if lines:
            say(f"\n{title}", "bold")
        for line in lines:
            say(line)


def _table(title: str, *columns: tuple[str, JustifyMethod]) -> Table:
    table = Table(
        box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left", title_style="bold", header_style="dim"
    )
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")  # everything is shown, however narrow the console
    return table


def _add(table: Table, *cells: str, is_well: bool) -> None:
    table.add_row(*(Text(one_line(cell)) for cell in cells), style=None if is_well else "red")


def _nodes(status: Status) -> Table:
    running = Counter(partition.worker_id for consumer in status.consumers for partition in consumer.partitions)
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
            str(running[node.worker_id]),
            is_well=not node.is_silent,
        )
    return table


def _consumers(status: Status) -> Table:
    silent = {node.worker_id for node in status.nodes if node.is_silent}
    table = _table(
        "Consumers",
        ("consumer", "left"),
        ("part", "right"),
        ("node", "left"),
        ("checkpoint", "right"),
        ("lag", "right"),
        ("for", "right"),
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
                is_well=state == "assigned",
            )
    return table


def _state(consumer: ConsumerStatus, partition: PartitionStatus, silent: set[UUID], last_issued: int) -> str:
    if is_ahead_of_log(partition, last_issued):
        return "ahead of log"
    if partition.failing is not None:
        return "failing" if partition.failing.parked_at is None else "parked"
    if not consumer.live_nodes:
        return "no node has it"
    if partition.worker_id is None:
        return "unassigned"
    if partition.worker_id in silent:
        return "node silent"
    return "assigned" if partition.locked_by is None else "locked"


def _failure(consumer: ConsumerStatus, partition: PartitionStatus, now: datetime) -> Iterable[str]:
    failing = partition.failing
    if failing is None:
        return
    facts = [describe_event(failing)]
    if failing.failed_at is not None:
        facts.append(f"last {_time((now - failing.failed_at).total_seconds())} ago")
    if failing.parked_at is not None:
        facts.append(f"parked {_time((now - failing.parked_at).total_seconds())} ago")
    elif failing.retry_at is not None:
        due = (failing.retry_at - now).total_seconds()
        facts.append(f"next in {_time(due)}" if due > 0 else "next attempt due")
    yield f"{one_line(consumer.name)}/{partition.partition}: {', '.join(facts)}"
    yield f"  {cause_of(failing)}"


def _lock(consumer: ConsumerStatus, partition: PartitionStatus) -> Iterable[str]:
    holder = partition.locked_by
    if holder is None:
        return
    seconds, who = _time(partition.locked_seconds), describe_transaction(holder)
    yield f"{one_line(consumer.name)}/{partition.partition}: locked for {seconds} at the most, by {who}"
    yield f"  to end it: {how_to_end(holder)}"


def _short(worker_id: UUID | None) -> str:
    """Enough of a random id to tell a few nodes apart; `--json` has all of it."""
    return "-" if worker_id is None else str(worker_id)[:8]


def _time(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(seconds, 0.0):.{1 if seconds < 10 else 0}f} s"
