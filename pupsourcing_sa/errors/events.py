"""Errors about the contents of events."""

from __future__ import annotations

from uuid import UUID

from pupsourcing_sa.errors.base import PupsourcingError

__all__ = [
    "EventDecodingError",
    "PayloadError",
    "UnknownEventTypeError",
    "UnreadableEventError",
]


class UnreadableEventError(PupsourcingError, ValueError):
    """A value of an event in the log cannot be read. Another program wrote it.

    Attributes:
        position: global position of the event.
        event_id: id of the event.
        field: the attribute of `PersistedEvent`; the event's other attributes can be read.
    """

    def __init__(self, position: int, event_id: UUID, field: str, problem: str) -> None:
        self.position = position
        self.event_id = event_id
        self.field = field
        super().__init__(f"{field} of the event at {position} ({event_id}) cannot be read: {problem}")


class PayloadError(PupsourcingError, ValueError):
    """A payload does not match the class of its event type.

    The text never contains a value of the payload, because it may be personal data.

    Attributes:
        event_type: name of the event type.
        event_version: version of the payload.
        path: path of the field, such as ``$.lines[1].quantity``; ``None`` if it is not known.
        problem: the problem, such as ``"Expected `int`, got `str`"``.
    """

    def __init__(self, event_type: str, event_version: int, path: str | None, problem: str) -> None:
        self.event_type = event_type
        self.event_version = event_version
        self.path = path
        self.problem = problem
        super().__init__(
            f"payload of {event_type!r} version {event_version}{'' if path is None else f' at {path}'}: {problem}"
        )


class EventDecodingError(PayloadError):
    """The data of an event in the log cannot be decoded. The other attributes of the event can be read.

    Attributes:
        position: global position of the event.
        event_id: id of the event. `PayloadError` has the other attributes.
    """

    def __init__(
        self, position: int, event_id: UUID, event_type: str, event_version: int, path: str | None, problem: str
    ) -> None:
        super().__init__(event_type, event_version, path, problem)
        self.position = position
        self.event_id = event_id
        self.args = (f"event at {position} ({event_id}): {self.args[0]}",)


class UnknownEventTypeError(PupsourcingError, LookupError):
    """The registry has no class for a stored event type.

    Attributes:
        event_type: the stored event type.
        is_retired: True if the type was retired.
        consumer: the consumer with ``unknown="raise"`` that has no handler of the type; ``None`` if it has no class.
    """

    def __init__(self, event_type: str, is_retired: bool, consumer: str | None = None) -> None:
        self.event_type = event_type
        self.is_retired = is_retired
        self.consumer = consumer
        remedy = "is retired; use its payload" if is_retired else "is not registered; register its class, or retire it"
        if consumer is not None:
            remedy = f"has no handler in consumer {consumer!r}; add one with handles(), or declare unknown='raw'"
        super().__init__(f"event type {event_type!r} {remedy}")
