"""Events as JSON and as lines, for terminals and other programs."""

from __future__ import annotations

import base64
import json
import re
import sys
from typing import Any, Final

from pupsourcing_sa.errors import UnreadableEventError
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.printable import escaped, one_line

__all__ = ["event_as_json", "event_as_line", "json_text"]

#: Number of characters of a payload in a line.
_MAX_PAYLOAD: Final = 120
_FIELDS: Final = (
    "global_position",
    "event_id",
    "aggregate_type",
    "aggregate_id",
    "aggregate_version",
    "event_type",
    "event_version",
    "created_at",
    "correlation_id",
    "causation_id",
    "trace_id",
    "metadata",
)
_NO_ASCII_TEXT: Final = re.compile(r"[^\n -~]")


def event_as_json(event: PersistedEvent) -> dict[str, Any]:
    """Return all fields of an event, for JSON.

    A payload that is not JSON is in ``payload_base64`` instead of ``payload``. ``problems`` lists fields that another
    program wrote and Python cannot represent; their value is null.
    """
    fields: dict[str, Any] = {}
    problems = []
    for name in _FIELDS:
        try:
            value = getattr(event, name)
        except UnreadableEventError as error:
            value = None
            problems.append(str(error))
        fields[name] = value
    if fields["metadata"] is not None:
        fields["metadata"] = dict(fields["metadata"])
    fields["event_id"] = str(event.event_id)
    if fields["created_at"] is not None:
        fields["created_at"] = fields["created_at"].isoformat(timespec="microseconds")
    try:
        fields["payload"] = _payload(event)
    except (ValueError, RecursionError):
        fields["payload_base64"] = base64.b64encode(event.payload).decode()
    return fields | ({"problems": problems} if problems else {})


def event_as_line(event: PersistedEvent) -> str:
    """Return an event as a line. The payload is shortened."""
    try:
        created_at = event.created_at.isoformat(timespec="microseconds")
    except UnreadableEventError:
        created_at = "unreadable time"
    try:
        payload = one_line(json_text(event.json()), _MAX_PAYLOAD)
    except (ValueError, RecursionError):
        payload = f"<{len(event.payload):,} bytes>"
    aggregate = f"{escaped(event.aggregate_type)} {escaped(event.aggregate_id)} #{event.aggregate_version}"
    event_type = f"{escaped(event.event_type)} v{event.event_version}"
    return f"{event.global_position:>6}  {created_at}  {aggregate}  {event_type}  {payload}"


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that a terminal can show. It escapes what cannot be printed, in the way of JSON.

    Raises:
        ValueError, RecursionError: the value has an infinite number, or is nested too deeply.
    """
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=not is_unicode, allow_nan=False)
    return _NO_ASCII_TEXT.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def _payload(event: PersistedEvent) -> Any:
    """Decode a payload as JSON that can be written again.

    Raises:
        ValueError, RecursionError: it is not JSON, or it has a number that JSON cannot represent.
    """
    value = event.json()
    json.dumps(value, allow_nan=False)
    return value
