"""Encoding of payloads and metadata as JSON, and new event ids."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from pupsourcing_sa._checks import check_type

__all__ = ["encode_json", "encode_metadata", "for_jsonb", "has_nul", "quote_json", "uuid7"]

_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
#: Encodes a string as JSON, with its quotes.
quote_json = json.encoder.encode_basestring

#: A string of a JSON text, or a number of up to 999 digits that is written with a positive exponent.
_STRING_OR_POWER: Final = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?[eE]\+?\d{1,3}(?!\d)')
_POWER: Final = re.compile(r"\d[eE]\+?\d")

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
    return for_jsonb(text)


def for_jsonb(text: str) -> str:
    """Write the large floats of a JSON text without exponents, so that JSONB returns them as floats.

    JSONB stores decimals and keeps the digits after the point. It returns 1e23 as an integer, which is not equal to the
    float, but 100000000000000000000000.0 unchanged.

    >>> for_jsonb('{"1e23": 1e+16}')
    '{"1e23": 10000000000000000.0}'
    """
    return _STRING_OR_POWER.sub(_without_exponent, text) if _POWER.search(text) else text


def _without_exponent(match: re.Match[str]) -> str:
    token = match[0]
    if token.startswith('"'):
        return token
    digits = f"{Decimal(token):f}"
    return digits if "." in digits else f"{digits}.0"


def has_nul(text: str) -> bool:
    """Return True if a string in a JSON text contains a NUL character, which JSONB cannot store."""
    # An escaped backslash does not begin an escape sequence.
    return "\\u0000" in text.replace("\\\\", "")
