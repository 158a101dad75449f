"""Texts about failing events and transactions, each in one line."""

from __future__ import annotations

from typing import Final

from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.status.model import FailingEvent

__all__ = ["cause_of", "describe_event", "describe_transaction", "how_to_end"]

_MAX_QUERY_LENGTH: Final = 100
_MAX_ERROR_LENGTH: Final = 200


def describe_event(failing: FailingEvent) -> str:
    """Return the event's position, type, id and number of attempts."""
    if failing.position is None:
        return "no recorded event"
    text = f"event {failing.position}"
    if failing.event_id is not None:
        text += f" ({one_line(failing.event_type or '')} {failing.event_id})"
    return f"{text}, attempts {failing.attempts}" if failing.attempts else f"{text}, no attempt counted"


def cause_of(failing: FailingEvent) -> str:
    """Return the line of the traceback that names the exception."""
    last = (failing.error or "").rpartition("Traceback (most recent call last):")[2]
    lines = [line for line in last.splitlines() if any(map(str.isalnum, line))]
    if not lines:
        return "no error is recorded"
    # Every line of an ExceptionGroup is indented and framed. Its last line is the most specific one.
    cause = next((line for line in lines if not line[0].isspace()), lines[-1].strip(" |+-"))
    return one_line(cause, _MAX_ERROR_LENGTH)


def describe_transaction(holder: LockHolder) -> str:
    """Return the transaction's identity, state, age and last statement, as far as they are known."""
    identity = f"pid {holder.pid}" if holder.gid is None else f"prepared transaction {holder.gid!r}"
    if holder.application_name:
        identity += f" {holder.application_name!r}"
    facts = [identity] if holder.user is None else [identity, f"role {holder.user}"]
    if holder.gid is None and holder.state is not None:
        facts.append(holder.state)
    if holder.age is not None:
        facts.append(f"{'prepared' if holder.gid else 'started'} {holder.age.total_seconds():.0f} s ago")
    if holder.query:
        facts.append(f"last statement: {one_line(holder.query, _MAX_QUERY_LENGTH)}")
    return one_line(", ".join(facts))


def how_to_end(holder: LockHolder) -> str:
    """Return the SQL that ends the transaction. It needs the same role, a superuser or ``pg_signal_backend``."""
    if holder.gid is not None:
        return "COMMIT PREPARED or ROLLBACK PREPARED '{}'".format(holder.gid.replace("'", "''"))
    return f"SELECT pg_terminate_backend({holder.pid})"
