"""The search for datetimes without a time zone in an event. They would mean another time on another machine.

Encoding calls it for every event, so it looks only at fields whose annotations allow a datetime.
"""

from __future__ import annotations

import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

__all__ = ["naive_datetime"]

_OTHERS: Final = (str, bytes, int, float, complex, Decimal, UUID, date, time, timedelta, Enum, NoneType)


def naive_datetime(value: Any, path: str = "$") -> str | None:
    """Return the path of the first datetime without a time zone, or ``None`` if there is none."""
    if isinstance(value, datetime):
        return path if value.utcoffset() is None else None
    if isinstance(value, _OTHERS):
        return None
    inner: Iterable[tuple[Any, str]]
    if isinstance(value, Mapping):
        # A key may be personal data, so the path does not name it.
        inner = ((item, f"{path}[...]") for item in value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = ((item, f"{path}[{number}]") for number, item in enumerate(value))
    else:
        names = _fields_with_datetimes(cast("Hashable", type(value)))
        inner = ((getattr(value, name, None), f"{path}.{name}") for name in names)
    for item, item_path in inner:
        found = naive_datetime(item, item_path)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=10_000)
def _fields_with_datetimes(cls: Any) -> tuple[str, ...]:
    """Return the fields of a class whose annotations allow datetimes; all of them if they cannot be evaluated."""
    fields = _fields(cls)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):
        return fields
    return tuple(name for name in fields if _allows_datetime(hints.get(name, Any), frozenset({cls})))


def _fields(cls: type[Any]) -> tuple[str, ...]:
    """Return the fields of a dataclass, a Struct, an attrs class or a Pydantic model."""
    for attribute in ("__dataclass_fields__", "__struct_fields__", "__pydantic_fields__"):
        if hasattr(cls, attribute):
            return tuple(getattr(cls, attribute))
    return tuple(field.name for field in getattr(cls, "__attrs_attrs__", ()))


def _allows_datetime(hint: Any, seen: frozenset[Any]) -> bool:
    """Return False if no value of this type contains a datetime."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return False
    if origin is Annotated:
        return _allows_datetime(typing.get_args(hint)[0], seen)
    if origin is not None:
        return any(_allows_datetime(inner, seen) for inner in _parameters(hint, origin))
    if not isinstance(hint, type) or issubclass(hint, datetime):
        return hint is not None and hint is not Ellipsis
    if issubclass(hint, _OTHERS) or hint in seen:
        return False
    fields = _fields(hint)
    if not fields:
        return True
    try:
        hints = typing.get_type_hints(hint, include_extras=True)
    except (NameError, TypeError):
        return True
    return any(_allows_datetime(hints.get(name, Any), seen | {hint}) for name in fields)


def _parameters(hint: Any, origin: Any) -> Iterator[Any]:
    """Return the types in a union or in a parametrized type, and those of a generic class."""
    yield from typing.get_args(hint)
    if isinstance(origin, type) and _fields(origin):
        yield origin
