"""Checks of arguments.

Each raises ``TypeError`` or ``ValueError``. The message begins with the argument's name, says what is accepted and ends
with the value, or the type, that was passed.

Checks of numbers and texts return the value without its subclass. Drivers, ``format()`` and comparisons treat the value
of a subclass differently: psycopg sends the name of an ``(int, Enum)``, not its value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

__all__ = [
    "MAX_BIGINT",
    "MAX_INTEGER",
    "MAX_NAME_BYTES",
    "MAX_SECONDS",
    "check_int",
    "check_name",
    "check_names",
    "check_seconds",
    "check_text",
    "check_type",
]

#: Limits of PostgreSQL's types.
MAX_INTEGER: Final = 2**31 - 1
MAX_BIGINT: Final = 2**63 - 1
#: PostgreSQL truncates longer identifiers.
MAX_NAME_BYTES: Final = 63
#: PostgreSQL's timeouts allow about twice this value.
MAX_SECONDS: Final = 1_000_000


def check_type(name: str, value: object, types: Any, expected: str, hint: str = "") -> None:
    """Refuse a value of another type.

    >>> check_type("store", 5, str, "an EventStore", "; write EventStore()")
    Traceback (most recent call last):
    TypeError: store must be an EventStore, not int; write EventStore()
    """
    if not isinstance(value, types):
        raise TypeError(f"{name} must be {expected}, not {type(value).__name__}{hint}")


def check_int(name: str, value: Any, *, minimum: int = 0, maximum: int = MAX_BIGINT, is_optional: bool = False) -> Any:
    """Return the value as a plain int in this range. A bool is refused; ``None`` is accepted if it is optional."""
    if type(value) is not int:
        if value is None and is_optional:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int{' or None' if is_optional else ''}, not {type(value).__name__}")
        value = int.__int__(value)
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} must be between {minimum} and {maximum}, not {_shown(value)}")
    return value


def _shown(value: float) -> object:
    # Python refuses to write an int of more than 4,300 digits.
    is_long = isinstance(value, int) and value.bit_length() > 1000
    return "an int of more than 300 digits" if is_long else value


def check_seconds(name: str, value: object) -> int | float:
    """Return the value as a plain int or float: a positive, finite number of seconds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    value = int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if not 0 < value <= MAX_SECONDS:  # False for NaN
        raise ValueError(f"{name} must be greater than 0 and at most {MAX_SECONDS:,} seconds, not {_shown(value)}")
    return value


def check_text(name: str, value: Any, *, is_optional: bool = False) -> Any:
    """Return the value as a plain str that a TEXT column can store. An optional one may be ``None`` or empty."""
    if type(value) is not str:
        if value is None and is_optional:
            return None
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
        value = str.__str__(value)
    if not value and not is_optional:
        raise ValueError(f"{name} must not be empty")
    if "\0" in value:
        raise ValueError(f"{name} must not contain NUL characters, which PostgreSQL cannot store")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} cannot be encoded as UTF-8: {error}") from None
    return value


def check_name(name: str, value: object, kind: str = "name") -> str:
    """Return the value as a plain str: a PostgreSQL identifier that PostgreSQL does not truncate."""
    check_type(name, value, str, "a str")
    assert isinstance(value, str)
    value = str.__str__(value)
    if not value or "\0" in value or len(value.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{name} must be a {kind} of 1 to {MAX_NAME_BYTES} bytes, not {value!r}")
    return value


def check_names(name: str, values: object) -> tuple[str, ...] | None:
    """Return the distinct names of an iterable, sorted, or ``None`` if there are none."""
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a set of str, such as {{{values!r}}}, not {type(values).__name__}")
    names = set()
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must contain str only, not {type(value).__name__}")
        names.add(check_text(name, value, is_optional=True))
    return tuple(sorted(names)) or None
