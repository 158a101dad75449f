"""Event classes: their names and versions in the log, their encoding, and how older versions become current ones.

An application creates one `EventRegistry` and registers its classes::

    class of the application ──encode──▶ name, version, payload ──▶ row of the log
    class of the application ◀──decode── upcasters, if the version is older ◀── row of the log

`MsgspecCodec` and `PydanticCodec` need the extra ``events``.
"""

from __future__ import annotations

from pupsourcing_sa.registry._deterministic import deterministic_id
from pupsourcing_sa.registry._event_type import EncodedPayload, EventType, NamedData
from pupsourcing_sa.registry._registry import EventRegistry
from pupsourcing_sa.registry.codecs import BoundCodec, InvalidPayload, MsgspecCodec, PayloadCodec, PydanticCodec
from pupsourcing_sa.registry.upcasting import Upcasted, Upcaster

__all__ = [
    "BoundCodec",
    "EncodedPayload",
    "EventRegistry",
    "EventType",
    "InvalidPayload",
    "MsgspecCodec",
    "NamedData",
    "PayloadCodec",
    "PydanticCodec",
    "Upcasted",
    "Upcaster",
    "deterministic_id",
]
