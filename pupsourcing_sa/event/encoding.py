"""Encoding of payloads and metadata as JSON, and new event ids."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pupsourcing_sa._checks import check_type

__all__ = ["encode_json", "encode_metadata", "has_nul", "quote_json", "uuid7"]

_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
#: Encodes a string as JSON, with its quotes.
quote_json = json.encoder.encode_basestring

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:

    def uuid7() -> UUID:
        """Return a new UUIDv7: 48 bits of Unix milliseconds, then random bits (RFC 9562, section 5.7)."""
        random = int.from_bytes(os.urandom(10), "big")
        bits = (time.time_ns() // 1_000_000) << 80 | random
        return UUID(int=bits & ~(0xF000 << 64) & ~(0xC000 << 48) | 0x7000 << 64 | 0x8000 << 48)


def encode_json(name: str, value: object) -> str:
    """Encode an argument as JSON.

    Raises:
        TypeError: JSON cannot represent the type.
        ValueError: the value is NaN or infinite, contains itself, is nested too deeply, or has a lone surrogate.
    """
    try:
        text = _to_json(value)
        text.encode()
    except TypeError as error:
        raise TypeError(f"{name} must be JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON: {error}") from None
    return text


def encode_metadata(metadata: Mapping[str, Any]) -> str | None:
    """Encode the metadata of an event for a JSONB column; empty metadata is NULL."""
    check_type("metadata", metadata, Mapping, "a mapping")
    if not metadata:
        return None
    for key in metadata:
        check_type("metadata keys", key, str, "str")
    text = encode_json("metadata", dict(metadata))
    if has_nul(text):
        raise ValueError("metadata must not contain NUL characters, which JSONB cannot store")
    return text


def has_nul(text: str) -> bool:
    """Return True if a string in a JSON text contains a NUL character, which JSONB cannot store."""
    # An escaped backslash does not begin an escape sequence.
    return "\\u0000" in text.replace("\\\\", "")
