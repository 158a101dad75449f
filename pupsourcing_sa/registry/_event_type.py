"""A registered event type, and what encoding takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pupsourcing_sa.registry.codecs import BoundCodec

__all__ = ["EncodedPayload", "EventType", "NamedData"]


class EncodedPayload(NamedTuple):
    """An encoded object.

    Attributes:
        event_type: name of the event type.
        event_version: its current version.
        payload: the bytes.
    """

    event_type: str
    event_version: int
    payload: bytes


class NamedData(NamedTuple):
    """Data with the name of its event type; see `EventRegistry.event`."""

    event_type: str
    data: Any


@dataclass(frozen=True, slots=True)
class EventType:
    """A registered event type.

    Attributes:
        name: its name in the log.
        version: its current version.
        cls: its class.
        codec: the codec of the class.
    """

    name: str
    version: int
    cls: type[Any]
    codec: BoundCodec
