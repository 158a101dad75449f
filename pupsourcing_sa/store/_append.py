"""Arguments of an append: checks, and conversion to the parameters of the statements."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pupsourcing_sa.errors import DuplicateEventError, NoEventsError, OptimisticConcurrencyError
from pupsourcing_sa.event import Event
from pupsourcing_sa.event.encoding import for_jsonb, has_nul
from pupsourcing_sa.expected import AnyVersion, Exact, ExpectedVersion, NoStream

__all__ = ["Append", "check_ids", "event_parameters", "stream_parameter"]


@dataclass(frozen=True, slots=True)
class Append:
    """Checked events of one aggregate, with its expected version."""

    expected: ExpectedVersion
    events: tuple[Event, ...]

    @classmethod
    def of(cls, expected_version: object, events: object) -> Append:
        """Check the arguments of a caller.

        Raises:
            NoEventsError, DuplicateEventError, TypeError, ValueError: see `EventStore.append`.
        """
        if not isinstance(expected_version, (AnyVersion, NoStream, Exact)):
            hint = f"; write {expected_version.__name__}()" if isinstance(expected_version, type) else ""
            raise TypeError(
                "expected_version must be AnyVersion(), NoStream() or Exact(version), "
                f"not {type(expected_version).__name__}{hint}"
            )
        if isinstance(events, Event):
            raise TypeError("events must be a sequence of Event, such as [event], not a single Event")
        if not isinstance(events, Iterable):
            raise TypeError(f"events must be a sequence of Event, not {type(events).__name__}")
        given = tuple(events)
        if not given:
            raise NoEventsError
        first = given[0]
        for event in given:
            if not isinstance(event, Event):
                raise TypeError(f"events must contain Event only, not {type(event).__name__}")
            if event.aggregate_id != first.aggregate_id or event.aggregate_type != first.aggregate_type:
                raise ValueError(
                    "events must be of one aggregate, not of "
                    f"{first.aggregate_type} {first.aggregate_id!r} and "
                    f"{event.aggregate_type} {event.aggregate_id!r}; append_many() takes several aggregates"
                )
        check_ids(given)
        return cls(expected_version, given)

    @property
    def aggregate_type(self) -> str:
        return self.events[0].aggregate_type

    @property
    def aggregate_id(self) -> str:
        return self.events[0].aggregate_id

    def conflict(self, actual: int | None) -> OptimisticConcurrencyError:
        return OptimisticConcurrencyError(self.aggregate_type, self.aggregate_id, self.expected, actual)


def check_ids(events: Sequence[Event]) -> None:
    """Refuse events with equal ids."""
    if len(events) > 1 and len({event.event_id for event in events}) < len(events):
        times = Counter(event.event_id for event in events)
        raise DuplicateEventError(event_id for event_id, count in times.items() if count > 1)


def event_parameters(appends: Sequence[Append], *, has_json_payload: bool) -> dict[str, Any]:
    """Return the events as parameters of the statements: a JSON array, and the payloads as one value of bytes."""
    rows: list[str] = []
    if has_json_payload:
        for stream, append in enumerate(appends, 1):
            for event in append.events:
                start = f'{{"stream":{stream},"number":{len(rows) + 1},"payload":{_json_text(event)},'
                rows.append(start + event.append_json)
        return {"events": f"[{','.join(rows)}]"}
    payloads: list[bytes] = []
    offset = 1
    for stream, append in enumerate(appends, 1):
        for event in append.events:
            payload, rest = event.payload, event.append_json
            size = len(payload)
            rows.append(f'{{"stream":{stream},"number":{len(rows) + 1},"start":{offset},"size":{size},{rest}')
            payloads.append(payload)
            offset += size
    return {"events": f"[{','.join(rows)}]", "payloads": b"".join(payloads)}


def stream_parameter(numbered: Iterable[tuple[int, Append]]) -> str:
    """Return the aggregates as a parameter of the statements, a JSON array."""
    rows: list[dict[str, Any]] = []
    before = 0
    for number, append in numbered:
        row = {"stream": number, "stream_type": append.aggregate_type, "stream_id": append.aggregate_id}
        row |= {"expected": append.expected.version, "count": len(append.events), "before": before}
        rows.append(row)
        before += len(append.events)
    return json.dumps(rows, ensure_ascii=False)


def _json_text(event: Event) -> str:
    """Return the payload as text for a JSONB column, which refuses NaN, infinity and NUL characters."""
    try:
        text = event.payload.decode()
        json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"payload of event {event.event_id} must be JSON for a JSONB column: {error}") from None
    if has_nul(text):
        raise ValueError(f"payload of event {event.event_id} has a NUL character, which JSONB cannot store; remove it")
    return for_jsonb(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
