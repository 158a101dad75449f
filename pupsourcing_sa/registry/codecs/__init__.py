"""Codecs: they turn objects of event classes into payloads and back."""

from __future__ import annotations

from pupsourcing_sa.registry.codecs._msgspec import MsgspecCodec
from pupsourcing_sa.registry.codecs._pydantic import PydanticCodec
from pupsourcing_sa.registry.codecs.protocol import BoundCodec, InvalidPayload, PayloadCodec

__all__ = ["BoundCodec", "InvalidPayload", "MsgspecCodec", "PayloadCodec", "PydanticCodec"]
